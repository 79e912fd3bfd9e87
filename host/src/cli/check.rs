//! `throwbar check`: a config and the plugins it names, up to the first bind.

use super::output::{self, Out, Style};
use super::serve::read_config;
use super::{Ended, Exit, read_text};
use crate::config::Config;
use crate::plugin::{CompileIn, DeployError, PluginConfig, Plugins, PluginsOptions, Source};
use crate::proxy::access_log::Sink;
use crate::store::Store;
use anyhow::Context;
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
    if let Some(problem) = log_problem(&config) {
        return Err(Ended::error(
            Exit::ConfigInvalid,
            format!("config {name}: {problem}"),
        ));
    }
    let problems = plugin_problems(&config, compile_in(&config))?;
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
        Ok(config) => (Vec::new(), plugin_problems(config, compile_in(config))?),
        Err(problems) => (problems.clone(), Vec::new()),
    };
    let log = parsed.as_ref().ok().and_then(log_problem);
    let mut out = Out::stdout();
    out.json(&json!({
        "file": args.file,
        "ok": problems.is_empty() && plugins.is_empty() && log.is_none(),
        "problems": problems,
        "plugins": plugins,
        "log": log,
    }))?;
    out.flush()?;
    if !problems.is_empty() || log.is_some() {
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

/// A log that could not be opened, as its directory is not there.
fn log_problem(config: &Config) -> Option<String> {
    let access = match &config.log.access {
        Sink::File(path) => Some(path),
        Sink::Stdout | Sink::Off => None,
    };
    let files = [
        ("log.access", access),
        ("log.audit", config.log.audit.as_ref()),
    ];
    files.into_iter().find_map(|(key, path)| {
        // Of a bare name it is this one.
        let directory = path?.parent().filter(|it| !it.as_os_str().is_empty())?;
        (!directory.is_dir()).then(|| format!("{key}: {} is no directory", directory.display()))
    })
}

/// As `serve` does it.
fn compile_in(config: &Config) -> CompileIn {
    CompileIn::this_program(config.admin.compile)
}

/// What is wrong with the plugins of a config: each is loaded as `serve` would from its source, and its `init` is run with
/// its settings on empty buckets. A version that was pushed since is not looked at.
fn plugin_problems(config: &Config, compile_in: CompileIn) -> anyhow::Result<Vec<String>> {
    let scratch = tempfile::tempdir().context("a directory for compiled code")?;
    let store = Store::scratch(&config.buckets)?;
    let plugins = Plugins::new(PluginsOptions {
        data: scratch.path(),
        store: store.clone(),
        workers: 1,
        component_bytes_max: config.admin.component_bytes_max,
        compile_in,
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let problem = |plugin: &PluginConfig| {
        let checked = plugins.check(std::slice::from_ref(plugin), &store);
        let (name, error) = runtime.block_on(checked).err()?;
        Some(match &plugin.source {
            // Whose message begins with the file.
            Source::File(file) if !matches!(error, DeployError::Io(_)) => {
                format!("plugin {name:?}: {}: {error}", file.display())
            }
            _ => format!("plugin {name:?}: {error}"),
        })
    };
    let problems = config.plugins.iter().filter_map(problem).collect();
    plugins.close();
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::PluginLimits;

    fn config_with(source: Source) -> Config {
        Config {
            plugins: vec![PluginConfig {
                name: "edge".to_owned(),
                source,
                grants: Default::default(),
                settings: Default::default(),
                limits: PluginLimits::default(),
                sessions: Default::default(),
                versions: Default::default(),
            }],
            ..Config::default()
        }
    }

    #[test]
    fn a_log_without_its_directory_is_a_problem() {
        let there = tempfile::tempdir().expect("a directory can be made");
        let mut config = Config::default();
        config.log.audit = Some(there.path().join("audit.log"));
        assert_eq!(log_problem(&config), None);
        config.log.access = Sink::File(there.path().join("none/access.log"));
        let expected = format!(
            "log.access: {}/none is no directory",
            there.path().display()
        );
        assert_eq!(log_problem(&config), Some(expected));
    }

    fn problems_of(config: &Config) -> Vec<String> {
        plugin_problems(config, CompileIn::Thread).expect("looked at")
    }

    #[test]
    fn a_plugin_file_that_is_missing_or_no_component_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "text").expect("write");
        for path in [file.path().to_owned(), "missing.wasm".into()] {
            let problems = problems_of(&config_with(Source::File(path.clone())));
            assert_eq!(problems.len(), 1);
            assert!(problems[0].contains("\"edge\""), "{problems:?}");
            assert!(problems[0].contains(&path.display().to_string()));
        }
    }

    #[test]
    fn plugins_that_are_built_in_or_pushed_later_need_no_file() {
        let problems = |source| problems_of(&config_with(source));
        assert!(problems(Source::Pushed).is_empty());
        assert!(problems(Source::Builtin("maintenance".to_owned())).is_empty());
        assert!(problems(Source::Builtin("nope".to_owned()))[0].contains("by-header"));
    }

    #[test]
    fn settings_that_a_plugin_refuses_are_told() {
        let mut config = config_with(Source::Builtin("canary".to_owned()));
        let weights = ("weights".to_owned(), "nonsense".to_owned());
        config.plugins[0].settings = [weights].into();
        let problems = problems_of(&config);
        assert!(problems[0].contains("nonsense"), "{problems:?}");
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
