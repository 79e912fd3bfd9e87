//! `throwbar check`: a config and the plugins it names, up to the first bind.

use super::output::{self, Out, Style};
use super::serve::read_config;
use super::{Ended, Exit, read_text};
use crate::config::Config;
use crate::plugin::{Source, builtin, inspect};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  throwbar check throwbar.toml
  throwbar check throwbar.toml --json     problems with line and column, for editors and CI")]
pub(crate) struct Args {
    /// The config (TOML)
    file: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Checks everything that can be checked without binding a port.
///
/// # Errors
/// If there is a problem, with [`Exit::ConfigInvalid`], or with [`Exit::PluginRefused`] if only plugins have one.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let name = args.file.display().to_string();
    if args.json {
        return as_json(&args);
    }
    let (_, config) = read_config(&args.file)?;
    let problems = plugin_problems(&config);
    if !problems.is_empty() {
        return Err(refused(&problems));
    }
    let mut out = Out::stdout();
    let counted = |n: usize, noun: &str| output::counted(n as u64, noun);
    out.line(format_args!(
        "{name}: {}   {}, {}, {}, {}",
        Style::stdout().green("ok"),
        counted(config.listeners.len(), "listener"),
        counted(config.routes.len(), "route"),
        counted(config.plugins.len(), "plugin"),
        counted(config.buckets.len(), "bucket"),
    ))?;
    out.flush()
}

fn as_json(args: &Args) -> anyhow::Result<()> {
    let name = args.file.display().to_string();
    let text = read_text(&args.file)
        .map_err(|error| Ended::error(Exit::ConfigInvalid, format!("config {name}: {error}")))?;
    let parsed = Config::parse(&text, Some(&args.file));
    let (problems, plugins) = match &parsed {
        Ok(config) => (Vec::new(), plugin_problems(config)),
        Err(problems) => (problems.clone(), Vec::new()),
    };
    let mut out = Out::stdout();
    out.json(&json!({
        "file": args.file,
        "ok": problems.is_empty() && plugins.is_empty(),
        "problems": problems,
        "plugins": plugins,
    }))?;
    out.flush()?;
    if !problems.is_empty() {
        Err(Ended::error(
            Exit::ConfigInvalid,
            format!("config {name} is invalid"),
        ))
    } else if plugins.is_empty() {
        Ok(())
    } else {
        Err(refused(&plugins))
    }
}

fn refused(problems: &[String]) -> anyhow::Error {
    Ended::error(
        Exit::PluginRefused,
        format!("plugins do not load\n  {}", problems.join("\n  ")),
    )
}

/// What is wrong with the components the config names.
fn plugin_problems(config: &Config) -> Vec<String> {
    let problem = |plugin: &str, what: String| format!("plugin {plugin:?}: {what}");
    config
        .plugins
        .iter()
        .filter_map(|plugin| match &plugin.source {
            Source::Pushed => None,
            Source::Builtin(name) if builtin::component(name).is_some() => None,
            Source::Builtin(name) => Some(problem(
                &plugin.name,
                format!(
                    "no built-in plugin {name:?}, expected one of {}",
                    builtin::NAMES.join(", ")
                ),
            )),
            Source::File(file) => {
                let checked = std::fs::read(file)
                    .map_err(|error| error.to_string())
                    .and_then(|bytes| match bytes.len() {
                        length if length > config.admin.component_bytes_max => Err(format!(
                            "is {}, larger than {}",
                            output::size(length as u64),
                            output::size(config.admin.component_bytes_max as u64)
                        )),
                        _ => inspect::inspect(&bytes).map_err(|error| error.to_string()),
                    });
                checked
                    .err()
                    .map(|what| problem(&plugin.name, format!("{}: {what}", file.display())))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{PluginConfig, PluginLimits};

    fn config_with(source: Source) -> Config {
        Config {
            plugins: vec![PluginConfig {
                name: "edge".to_owned(),
                source,
                grants: Default::default(),
                settings: Default::default(),
                limits: PluginLimits::default(),
            }],
            ..Config::default()
        }
    }

    #[test]
    fn a_plugin_file_that_is_missing_or_no_component_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "text").expect("write");
        for path in [file.path().to_owned(), "missing.wasm".into()] {
            let problems = plugin_problems(&config_with(Source::File(path.clone())));
            assert_eq!(problems.len(), 1);
            assert!(problems[0].contains("\"edge\""), "{problems:?}");
            assert!(problems[0].contains(&path.display().to_string()));
        }
    }

    #[test]
    fn plugins_that_are_built_in_or_pushed_later_need_no_file() {
        assert!(plugin_problems(&config_with(Source::Pushed)).is_empty());
        let builtin = config_with(Source::Builtin("by-header".to_owned()));
        assert!(plugin_problems(&builtin).is_empty());
        let unknown = config_with(Source::Builtin("nope".to_owned()));
        assert!(plugin_problems(&unknown)[0].contains("by-header"));
    }

    #[test]
    fn a_config_that_cannot_be_read_has_the_exit_code_of_an_invalid_one() {
        let error = run(Args {
            file: "missing.toml".into(),
            json: false,
        })
        .expect_err("missing");
        assert_eq!(super::super::exit_of(&error), Exit::ConfigInvalid);
    }
}
