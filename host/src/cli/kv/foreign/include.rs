//! Files that a foreign config includes: read beside it, and bounded together.

use crate::cli::kv::source::WHOLE_BYTES_MAX;
use std::io::Read;
use std::path::{Path, PathBuf};

const FILES_MAX: usize = 1000;

/// Where included files are, and how much of them may still be read.
pub(in crate::cli::kv) struct Includes {
    dir: PathBuf,
    files_left: usize,
    bytes_left: u64,
}

impl Includes {
    /// Those of a file: relative to its directory, or to ours if it is standard input.
    pub(in crate::cli::kv) fn beside(file: &Path) -> Self {
        Self {
            dir: file.parent().map(Path::to_path_buf).unwrap_or_default(),
            files_left: FILES_MAX,
            bytes_left: WHOLE_BYTES_MAX,
        }
    }

    /// The files of one `include`, with what messages call them, in the order of their names. `*` and `?` in the name of
    /// the file stand for any characters and for one; then there may be none.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub(super) fn read(&mut self, named: &str) -> Result<Vec<(String, String)>, String> {
        let path = self.dir.join(named);
        if !named.contains(['*', '?', '[']) {
            return Ok(vec![(named.to_owned(), self.text(&path)?)]);
        }
        let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|it| it.to_str()))
        else {
            return Err("expected the name of a file".to_owned());
        };
        if named.contains('[') || dir.to_string_lossy().contains(['*', '?']) {
            return Err(
                "expected * and ? in the name of the file only, and no [: name its files one by one"
                    .to_owned(),
            );
        }
        let unreadable = |error: std::io::Error| format!("{}: {}", dir.display(), error.kind());
        let fitting = fitting(name)?;
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(unreadable)? {
            // What is hidden is no file of theirs, nor is what has no name in UTF-8.
            if let Ok(found) = entry.map_err(unreadable)?.file_name().into_string()
                && !found.starts_with('.')
                && fitting.is_match(&found)
            {
                names.push(found);
            }
        }
        names.sort();
        let shown = named.strip_suffix(name).unwrap_or_default();
        names
            .into_iter()
            .map(|found| Ok((format!("{shown}{found}"), self.text(&dir.join(&found))?)))
            .collect()
    }

    fn text(&mut self, path: &Path) -> Result<String, String> {
        let told = |error: std::io::Error| format!("{}: {}", path.display(), error.kind());
        self.files_left = self
            .files_left
            .checked_sub(1)
            .ok_or_else(|| format!("is more than {FILES_MAX} files, with those before it"))?;
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(told)?;
        let read = file.take(self.bytes_left + 1).read_to_end(&mut bytes);
        self.bytes_left = self
            .bytes_left
            .checked_sub(read.map_err(told)? as u64)
            .ok_or_else(|| {
                let most = crate::cli::output::size(WHOLE_BYTES_MAX);
                format!("is more than {most}, with those before it")
            })?;
        String::from_utf8(bytes).map_err(|_| format!("{}: is not text in UTF-8", path.display()))
    }
}

/// What fits the names that `*` and `?` of a pattern make.
fn fitting(pattern: &str) -> Result<regex::Regex, String> {
    let any = regex::escape(pattern)
        .replace(r"\*", ".*")
        .replace(r"\?", ".");
    crate::store::ordered::compile(&format!("^(?s:{any})$"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_stand_for_other_characters() {
        let fits = |pattern: &str, name: &str| fitting(pattern).expect("a pattern").is_match(name);
        for (pattern, name) in [
            ("*", "a"),
            ("*.map", "a.map"),
            ("a?c*", "abc"),
            ("*a*b", "xaab"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*.map", "a.maps"),
            ("a?c", "ac"),
            ("*.map", "amap"),
            ("?", ""),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn files_are_read_in_the_order_of_their_names_and_missing_ones_are_told() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["b.map", "a.map", ".c.map", "d.txt"] {
            std::fs::write(dir.path().join(name), name).expect("written");
        }
        let mut includes = Includes::beside(&dir.path().join("nginx.conf"));
        let names = |found: Vec<(String, String)>| found.into_iter().map(|(name, _)| name);
        let found = includes.read("./*.map").expect("two files");
        assert_eq!(names(found).collect::<Vec<_>>(), ["./a.map", "./b.map"]);
        assert_eq!(includes.read("x*.map").expect("no file"), []);
        let absolute = dir.path().join("d.txt");
        let one = includes.read(absolute.to_str().expect("UTF-8"));
        assert_eq!(one.expect("a file")[0].1, "d.txt");
        for (named, said) in [
            ("missing", "missing: entity not found"),
            ("*/x", "expected * and ?"),
            ("[ab].map", "expected * and ?"),
        ] {
            let problem = includes.read(named).expect_err(named);
            assert!(problem.contains(said), "{problem}");
        }
        includes.files_left = 1;
        let many = includes.read("*.map").expect_err("one too many");
        assert!(many.contains("more than 1000 files"), "{many}");
    }
}
