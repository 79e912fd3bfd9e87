//! What a component file is and asks for, told without compiling it.

use super::DeployError;
use sha2::{Digest, Sha256};
use wasmparser::{Parser, Payload};

/// What a component is and asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// SHA-256 in hex: the version.
    pub digest: String,
    /// Imports its author asked for.
    pub imports: Vec<String>,
    /// Imports that come with the standard library of its language; nothing is granted through them.
    pub imports_of_std: Vec<String>,
    /// What it exports.
    pub exports: Vec<String>,
}

/// What a guest's standard library imports whether or not it is used.
const STD: [&str; 6] = [
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:random/",
    "wasi:sockets/",
];

/// Reads the outer form of a component, and refuses what a push would refuse for its form.
///
/// # Errors
/// [`DeployError::NotAComponent`] or [`DeployError::World`].
pub fn inspect(bytes: &[u8]) -> Result<Inspection, DeployError> {
    super::validate::check(bytes)?;
    let (imports, exports) = outer(bytes)
        .map_err(|error| DeployError::NotAComponent(format!("truncated or damaged: {error}")))?;
    let (imports_of_std, imports) = imports
        .into_iter()
        .partition(|name| STD.iter().any(|prefix| name.starts_with(prefix)));
    Ok(Inspection {
        digest: hex(&Sha256::digest(bytes)),
        imports,
        imports_of_std,
        exports,
    })
}

/// Names of what the outermost component imports and exports.
fn outer(bytes: &[u8]) -> wasmparser::Result<(Vec<String>, Vec<String>)> {
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    imports.push(import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    exports.push(export?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok((imports, exports))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to a string cannot fail");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::builtin;

    #[test]
    fn imports_of_the_author_are_told_from_those_of_the_standard_library() {
        let bytes = builtin::component("by-header").expect("it is built in");
        let found = inspect(bytes).expect("a plugin");
        assert_eq!(found.digest.len(), 64);
        assert_eq!(found.exports, ["throwbar:plugin/routing@0.1.0"]);
        let has = |names: &[String], prefix| names.iter().any(|name| name.starts_with(prefix));
        assert!(has(&found.imports, "throwbar:plugin/lookup"));
        assert!(has(&found.imports_of_std, "wasi:cli/"));
        assert!(!has(&found.imports, "wasi:cli/"));
    }

    #[test]
    fn what_a_push_would_refuse_for_its_form_is_refused() {
        let bytes = builtin::component("by-header").expect("it is built in");
        let half = &bytes[..bytes.len() / 2];
        for wrong in [&b"text"[..], b"", half] {
            let error = inspect(wrong).expect_err("no component");
            assert!(matches!(error, DeployError::NotAComponent(_)), "{error}");
        }
    }
}
