//! What is refused before anything of it runs.

use super::guest::Guest;
use super::{proxy, serves};
use crate::harness::{TestProxy, fixture};
use std::collections::BTreeSet;
use std::path::Path;

/// Every file that plugins have on disk.
fn files(proxy: &TestProxy) -> BTreeSet<String> {
    fn gather(dir: &Path, into: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => gather(&path, into),
                false => drop(into.insert(path.display().to_string())),
            }
        }
    }
    let mut files = BTreeSet::new();
    for name in ["data/plugins", "data/compiled"] {
        gather(&proxy.file(name), &mut files);
    }
    files
}

fn text(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("valid text")
}

#[tokio::test]
async fn what_is_no_router_is_refused_with_a_reason_and_leaves_no_file() {
    let (proxy, upstream) = proxy().await;
    let admin = proxy.admin();
    let good = fixture("version-b");
    let compiled = files(&proxy);
    let compiled = compiled.iter().find(|file| file.ends_with(".cwasm"));
    let compiled = std::fs::read(compiled.expect("compiled code")).expect("read");
    let imports = |name: &str| text(&format!("(component (import \"{name}\" (instance)))"));
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "empty"),
        ("garbage", b"not wasm at all".to_vec(), "begins with"),
        (
            "a program",
            b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
            "ELF",
        ),
        ("compiled code of our own", compiled, "ELF"),
        ("text", b"(component)".to_vec(), "WebAssembly text"),
        (
            "a core module",
            text("(module (func (export \"route\")))"),
            "core WebAssembly module",
        ),
        ("cut in half", good[..good.len() / 2].to_vec(), "truncated"),
        (
            "cut by one byte",
            good[..good.len() - 1].to_vec(),
            "truncated",
        ),
        (
            "nothing exported",
            text("(component)"),
            "does not export throwbar:plugin/routing",
        ),
        ("another world", fixture("wrong-world"), "does not export"),
        (
            "an unknown import",
            fixture("unknown-import"),
            "not offered",
        ),
        (
            "HTTP imported",
            imports("wasi:http/outgoing-handler@0.2.0"),
            "wasi:http/outgoing-handler@0.2.0: not offered",
        ),
        (
            "a file imported by its path",
            imports("unlocked-dep=<a:b/c>"),
            "not offered",
        ),
        ("other types", fixture("other-types"), "export init"),
        (
            "invalid code",
            Guest {
                items: "(func (result i32) (i64.const 1))",
                ..Guest::default()
            }
            .build(),
            "type mismatch",
        ),
    ];
    // Compiled code of what is refused for its types stays for a while.
    let without_code = || {
        let is_code = |file: &String| file.ends_with(".cwasm");
        files(&proxy)
            .into_iter()
            .filter(|file| !is_code(file))
            .collect::<Vec<_>>()
    };
    let before = without_code();
    assert_eq!(before.len(), 1, "the version from the config");
    let active = admin.plugin("router").await["active"].clone();
    for (name, component, expected) in cases {
        let response = admin.push("router", component).await;
        let told = response.text();
        assert_eq!(response.status, 422, "{name}: {told}");
        assert!(told.contains(expected), "{name}: {told}");
        assert_eq!(response.header("content-type"), "application/problem+json");
        assert_eq!(admin.plugin("router").await["active"], active, "{name}");
        assert_eq!(without_code(), before, "{name}");
        serves(&proxy, &upstream).await;
    }
}

#[tokio::test]
async fn a_flipped_byte_makes_another_valid_component_or_is_refused() {
    let (proxy, upstream) = proxy().await;
    let good = fixture("version-b");
    for part in 1..=8 {
        let mut flipped = good.clone();
        flipped[good.len() * part / 9] ^= 0xff;
        let response = proxy.admin().push("hostile", flipped).await;
        // It may hit what nobody reads.
        let told = response.text();
        assert!(matches!(response.status, 200 | 201 | 422), "{part}: {told}");
        serves(&proxy, &upstream).await;
    }
}

#[tokio::test]
async fn files_and_sockets_may_be_imported_and_give_nothing() {
    let (proxy, _upstream) = proxy().await;
    proxy
        .admin()
        .push_ok("hostile", fixture("wasi-probe"))
        .await;
    let answer = proxy.get("/hostile", &[]).await.text();
    assert!(answer.contains("denied"), "{answer}");
    assert!(!answer.contains("granted"), "{answer}");
}
