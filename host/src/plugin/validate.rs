//! Reasons to refuse a component that show before compiling: what the file is, what it imports, what it exports.

use super::imports::OFFERED;
use super::report::DeployError;
use wasmparser::{ComponentExternalKind, ComponentTypeRef, Encoding, Parser, Payload};

/// The package and interface a plugin exports, up to its version's patch level.
const ROUTING_0_1: &str = "throwbar:plugin/routing@0.1";
/// The same of the interfaces that a plugin may export beside: with hooks on its streams, with a migration, with a view of
/// its own; drafts by their exact names.
const OPTIONAL: [&[&str]; 4] = [
    &["throwbar:plugin/streams@0.1"],
    &["throwbar:plugin/migration@0.1"],
    &["throwbar:plugin/watcher@0.1"],
    &[
        "wasi:keyvalue/watcher@0.2.0-draft",
        "wasi:keyvalue/watcher@0.2.0-draft2",
    ],
];
/// Imports of most toolchains' guests, not worth telling of.
const ORDINARY: &[&str] = &[
    "throwbar:plugin/",
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:random/",
];

/// Checks the outer form of a component.
///
/// # Errors
/// [`DeployError::NotAComponent`] with what the file is instead, or [`DeployError::World`] with every import that is
/// not offered, or the export that is missing.
pub(super) fn check(bytes: &[u8]) -> Result<(), DeployError> {
    check_kind(bytes).map_err(DeployError::NotAComponent)?;
    let outer = read_outer(bytes).map_err(|error| {
        DeployError::NotAComponent(format!(
            "{} at byte {} of {}: truncated or damaged",
            error.message(),
            error.offset(),
            bytes.len()
        ))
    })?;
    let refused: Vec<&str> = outer
        .imports
        .iter()
        .filter_map(|import| import.refused())
        .collect();
    if !refused.is_empty() {
        return Err(DeployError::World(format!(
            "imports {}: not offered",
            refused.join(", ")
        )));
    }
    if !outer
        .exports
        .iter()
        .any(|name| same_interface(name, ROUTING_0_1))
    {
        let near = outer
            .exports
            .iter()
            .find(|name| name.starts_with("throwbar:plugin/routing"));
        return Err(DeployError::World(match near {
            Some(other) => format!(
                "exports {other}, expected {ROUTING_0_1}.x: build it with another version of the SDK"
            ),
            None => {
                format!("does not export {ROUTING_0_1}.x: it is a component, but no routing plugin")
            }
        }));
    }
    // Without them it would not be what its author pushed.
    for expected in OPTIONAL {
        let interface = expected[0].split('@').next();
        let other = outer.exports.iter().find(|name| {
            let is_known = expected.iter().any(|known| same_interface(name, known));
            name.split('@').next() == interface && !is_known
        });
        if let Some(other) = other {
            let expected = match expected {
                [ours] => format!("{ours}.x: build it with another version of the SDK"),
                drafts => drafts.join(" or "),
            };
            return Err(DeployError::World(format!(
                "exports {other}, expected {expected}"
            )));
        }
    }
    Ok(())
}

/// Those of a component's imports that say something about it.
pub(super) fn telling<'a>(imports: impl Iterator<Item = &'a str>) -> Vec<String> {
    let ordinary = |name: &str| ORDINARY.iter().any(|begin| name.starts_with(begin));
    imports
        .filter(|name| !ordinary(name))
        .map(str::to_owned)
        .collect()
}

fn check_kind(bytes: &[u8]) -> Result<(), String> {
    if bytes.is_empty() {
        return Err("the file is empty".into());
    }
    if bytes.starts_with(b"\x7fELF") {
        return Err("this is an ELF file (a program, a library or compiled .cwasm code); expected the .wasm of a component".into());
    }
    if bytes.starts_with(b"\0asm") {
        return match (Parser::is_component(bytes), Parser::is_core_wasm(bytes)) {
            (true, _) => Ok(()),
            (_, true) => Err("this is a core WebAssembly module; build for wasm32-wasip2, or turn it into a component with `wasm-tools component new`".into()),
            _ if bytes.len() < 8 => Err(format!("{} bytes only: truncated", bytes.len())),
            _ => Err("unknown WebAssembly version; expected a component of layer 1, version 13".into()),
        };
    }
    let text = bytes.trim_ascii_start();
    if text.starts_with(b"(") || text.starts_with(b";;") {
        return Err("this is WebAssembly text; encode it with `wasm-tools parse`".into());
    }
    let start = &bytes[..bytes.len().min(4)];
    Err(format!(
        "begins with {:?}, expected \"\\0asm\"",
        String::from_utf8_lossy(start)
    ))
}

struct Import {
    name: String,
    instance: bool,
}

impl Import {
    /// Its name if it is not offered.
    fn refused(&self) -> Option<&str> {
        let offered = OFFERED
            .iter()
            .any(|offered| same_interface(&self.name, offered));
        (!self.instance || !offered).then_some(&self.name)
    }
}

struct Outer {
    imports: Vec<Import>,
    exports: Vec<String>,
}

/// Whether a versioned name is of an interface given without its patch level (or exactly, for a draft).
fn same_interface(name: &str, interface: &str) -> bool {
    match name.strip_prefix(interface) {
        Some("") => true,
        Some(rest) => rest.strip_prefix('.').is_some_and(|patch| {
            !patch.is_empty() && patch.bytes().all(|byte| byte.is_ascii_digit())
        }),
        None => false,
    }
}

/// Imports and exports of the outermost component.
fn read_outer(bytes: &[u8]) -> wasmparser::Result<Outer> {
    let mut outer = Outer {
        imports: Vec::new(),
        exports: Vec::new(),
    };
    let mut depth = 0usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::Version { encoding, .. } => {
                depth += 1;
                debug_assert!(depth > 1 || encoding == Encoding::Component);
            }
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(imports) if depth == 1 => {
                for import in imports {
                    let import = import?;
                    outer.imports.push(Import {
                        name: import.name.name.to_owned(),
                        instance: matches!(import.ty, ComponentTypeRef::Instance(_)),
                    });
                }
            }
            Payload::ComponentExportSection(exports) if depth == 1 => {
                for export in exports {
                    let export = export?;
                    if export.kind == ComponentExternalKind::Instance {
                        outer.exports.push(export.name.name.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    Ok(outer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        check(bytes).expect_err("refused").to_string()
    }

    fn component(text: &str) -> Vec<u8> {
        wat::parse_str(text).expect("valid text")
    }

    #[test]
    fn each_wrong_kind_of_file_is_named() {
        assert!(refusal(b"").contains("empty"));
        assert!(refusal(b"\x7fELF\x02\x01").contains("ELF"));
        assert!(refusal(b"(component)").contains("text"));
        assert!(refusal(b"PK\x03\x04zip").contains("begins with \"PK"));
        assert!(refusal(b"\0as").contains("begins with"));
        assert!(refusal(b"\0asm\x0d").contains("truncated"));
        assert!(refusal(&component("(module)")).contains("core WebAssembly module"));
    }

    #[test]
    fn a_truncated_component_is_told_from_a_wrong_world() {
        let whole = component("(component (core module (func)))");
        assert!(refusal(&whole[..whole.len() - 3]).contains("truncated"));
        assert!(refusal(&whole).contains("does not export throwbar:plugin/routing@0.1.x"));
    }

    #[test]
    fn every_import_that_is_not_offered_is_named() {
        let refused = refusal(&component(
            r#"(component
                (import "wasi:nn/tensor@0.2.0" (instance))
                (import "wasi:cli/stdout@0.2.3" (instance))
                (import "wasi:http/outgoing-handler@0.2.0" (instance))
                (import "plain" (func)))"#,
        ));
        assert_eq!(
            refused,
            "imports wasi:nn/tensor@0.2.0, wasi:http/outgoing-handler@0.2.0, plain: not offered"
        );
    }

    #[test]
    fn another_version_of_the_interface_is_named() {
        let refused = refusal(&component(
            r#"(component (instance $i) (export "throwbar:plugin/routing@0.2.0" (instance $i)))"#,
        ));
        assert!(
            refused.contains("exports throwbar:plugin/routing@0.2.0, expected"),
            "{refused}"
        );
    }

    #[test]
    fn another_version_of_an_optional_export_is_refused_rather_than_ignored() {
        for name in ["streams", "migration", "watcher"] {
            let exporting = |version| {
                component(&format!(
                    r#"(component (instance $i)
                        (export "throwbar:plugin/routing@0.1.0" (instance $i))
                        (export "throwbar:plugin/{name}@{version}" (instance $i)))"#
                ))
            };
            assert!(check(&exporting("0.1.2")).is_ok());
            let refused = refusal(&exporting("0.2.0"));
            let expected = format!(
                "exports throwbar:plugin/{name}@0.2.0, expected throwbar:plugin/{name}@0.1.x"
            );
            assert!(refused.contains(&expected), "{refused}");
        }
        let draft = |draft| {
            component(&format!(
                r#"(component (instance $i)
                    (export "throwbar:plugin/routing@0.1.0" (instance $i))
                    (export "wasi:keyvalue/watcher@{draft}" (instance $i)))"#
            ))
        };
        assert!(check(&draft("0.2.0-draft")).is_ok() && check(&draft("0.2.0-draft2")).is_ok());
        let refused = refusal(&draft("0.2.0"));
        assert!(
            refused.ends_with(
                "expected wasi:keyvalue/watcher@0.2.0-draft or wasi:keyvalue/watcher@0.2.0-draft2"
            ),
            "{refused}"
        );
    }

    #[test]
    fn imports_beyond_the_ordinary_are_told() {
        let imports = ["wasi:cli/stdout@0.2.3", "wasi:keyvalue/store@0.2.0-draft"];
        assert_eq!(telling(imports.into_iter()), imports[1..]);
    }

    #[test]
    fn drafts_are_offered_by_their_exact_name_only() {
        assert!(same_interface("wasi:cli/exit@0.2.12", "wasi:cli/exit@0.2"));
        assert!(!same_interface("wasi:cli/exit@0.20.0", "wasi:cli/exit@0.2"));
        assert!(!same_interface(
            "wasi:cli/exit@0.2.0-rc",
            "wasi:cli/exit@0.2"
        ));
        assert!(same_interface("a:b/c@0.2.0-draft", "a:b/c@0.2.0-draft"));
        assert!(!same_interface("a:b/c@0.2.0-draft2", "a:b/c@0.2.0-draft"));
    }
}
