//! What ends with another exit code than 0, and what it says.

use super::serve;
use crate::harness::proxy::run;
use std::path::Path;

#[tokio::test]
async fn wrong_arguments_end_with_2_and_say_what_was_expected() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["serv"], "serve"),
        (&["serve", "--map", "id1"], "ID=HOST"),
        (&["serve", "--listen", "8080"], "IP:PORT"),
        (&["serve", "--listen", ":99999"], "99999 is no port"),
        (&["serve", "--workers", "0"], "from 1 to 256"),
        (&["serve", "--workers", "-1"], "from 1 to 256"),
        (
            &["kv", "ls", "b", "--limit", "abc"],
            "whole number, 1 or more",
        ),
        (
            &["kv", "ls", "b", "--limit", "-3"],
            "whole number, 1 or more",
        ),
        (&["kv", "ls", "--admin", "127.0.0.1:x"], "IP:PORT such as"),
        (
            &["kv", "set", "b", "a=1", "--ttl", "-3"],
            "whole number with its unit",
        ),
        (
            &["kv", "set", "b", "a=1", "--ttl", "-3s"],
            "whole number with its unit",
        ),
        (
            &["kv", "set", "b", "a=1", "--ttl", "1.5s"],
            "whole number with its unit",
        ),
        (
            &["kv", "touch", "b", "a", "--ttl", "soon"],
            "whole number with its unit",
        ),
        (
            &["kv", "set", "b", "a=1", "--if-revision", "x"],
            "`kv ls` shows it",
        ),
        (
            &["kv", "del", "b", "a", "--if-revision", "-1"],
            "`kv ls` shows it",
        ),
        (
            &["kv", "undo", "b", "--revision", "last"],
            "`kv ls` shows it",
        ),
        (&["kv", "watch", "b", "--since", "abc"], "`kv ls` shows it"),
        (&["kv", "watch", "b", "--since", "-5"], "`kv ls` shows it"),
        (
            &["kv", "set", "b", "id1", "127.0.0.3"],
            "\"id1\": expected KEY=VALUE; did you mean id1=127.0.0.3",
        ),
        (&["kv", "set", "b", "a=1", "b"], "\"b\": expected KEY=VALUE"),
        (
            &["kv", "incr", "b", "a", "lots"],
            "whole number such as 5 or -5",
        ),
        (
            &["kv", "import", "b", "f", "--chunk", "0"],
            "from 1 to 65536",
        ),
        (
            &["kv", "watch", "b", "--count", "x"],
            "whole number, 1 or more",
        ),
        (&["fleet", "status", "--wait", "30"], "it has no unit"),
        (
            &["fleet", "status", "--wait", "-1s"],
            "whole number with its unit",
        ),
        (&["top", "--interval", "1s"], "from 1 to 3600"),
        (
            &["streams", "ls", "--older-than", "-4h"],
            "whole number with its unit",
        ),
        (&["streams", "cancel", "x"], "`streams drains` shows it"),
        (
            &["plugin", "canary", "p", "--percent", "5%"],
            "from 0 to 100",
        ),
        (
            &["serve", "a.toml", "--map", "a=127.0.0.1"],
            "cannot be used with",
        ),
        (&["kv", "set", "upstreams"], "KEY=VALUE"),
        (
            &["streams", "close", "x"],
            "expected an id as `streams ls` shows it",
        ),
    ];
    for (arguments, expected) in cases {
        let ended = run(Path::new("."), arguments).await;
        assert_eq!(ended.code, 2, "{arguments:?}: {}", ended.stderr);
        assert!(
            ended.stderr.contains(expected),
            "{arguments:?}: {}",
            ended.stderr
        );
    }
}

#[tokio::test]
async fn nobody_there_ends_with_1_and_names_the_address() {
    let free = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.local_addr().expect("bound").to_string()
    };
    let ended = run(Path::new("."), &["kv", "ls", "--admin", &free]).await;
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains(&free), "{}", ended.stderr);
}

#[tokio::test]
async fn a_start_that_fails_for_a_port_leaves_nothing_behind() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("bound").to_string();
    let dir = tempfile::tempdir().expect("a directory");
    for (option, other) in [("--listen", "--admin"), ("--admin", "--listen")] {
        let arguments = ["serve", option, &address, other, "127.0.0.1:0"];
        let ended = run(dir.path(), &arguments).await;
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        let change = format!("or change {option}");
        assert!(ended.stderr.contains(&change), "{}", ended.stderr);
        let left = std::fs::read_dir(dir.path()).expect("read").count();
        assert_eq!(left, 0, "{option}");
    }
}

#[tokio::test]
async fn a_data_directory_that_is_a_file_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("kept"), "x").expect("written");
    let free = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let arguments = [&["serve", "--data", "kept"], &free[..]].concat();
    let ended = run(dir.path(), &arguments).await;
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    let expected = "kept is a file, expected a directory";
    assert!(ended.stderr.contains(expected), "{}", ended.stderr);
}

#[tokio::test]
async fn a_plugin_that_does_not_load_ends_check_and_serve_alike_and_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = "version = 1\ndata = \"data\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
                [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\n\
                [plugins.canary]\nsource = \"empty.wasm\"\n\
                [[route]]\nname = \"all\"\nplugin = \"canary\"\n";
    std::fs::write(dir.path().join("t.toml"), text).expect("written");
    std::fs::write(dir.path().join("empty.wasm"), "").expect("written");
    for command in ["check", "serve"] {
        let ended = run(dir.path(), &[command, "t.toml"]).await;
        assert_eq!(ended.code, 4, "{command}: {}", ended.stderr);
        for expected in ["\"canary\"", "empty.wasm", "the file is empty"] {
            assert!(
                ended.stderr.contains(expected),
                "{command}: {}",
                ended.stderr
            );
        }
    }
    assert!(!dir.path().join("data/admin.token").exists());
}

#[tokio::test]
async fn a_config_that_is_no_text_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("bin.toml"), [0xff, 0xfe]).expect("written");
    for command in ["check", "serve"] {
        let ended = run(dir.path(), &[command, "bin.toml"]).await;
        assert_eq!(ended.code, 3, "{command}: {}", ended.stderr);
        let expected = "config bin.toml: is not text in UTF-8";
        assert!(
            ended.stderr.contains(expected),
            "{command}: {}",
            ended.stderr
        );
    }
}

#[tokio::test]
async fn the_proxys_own_listener_is_no_admin_api() {
    let proxy = serve(&["--map", "id1=127.0.0.1"]).await;
    let listener = proxy.address.to_string();
    let ended = run(proxy.dir(), &["kv", "ls", "--admin", &listener]).await;
    assert_eq!(ended.code, 1);
    let expected = format!("{listener}: what answers there is not throwbar's admin API");
    assert!(ended.stderr.contains(&expected), "{}", ended.stderr);
}

#[tokio::test]
async fn a_missing_token_is_explained() {
    let proxy = serve(&["--map", "id1=127.0.0.1"]).await;
    let elsewhere = tempfile::tempdir().expect("a directory");
    let admin = proxy.admin_address.to_string();
    let ended = run(elsewhere.path(), &["kv", "ls", "--admin", &admin]).await;
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("token"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_map_that_is_wrong_ends_with_3_and_names_its_lines() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(
        dir.path().join("map.txt"),
        "id1 127.0.0.1\nid2\nid3 no!address\n",
    )
    .expect("written");
    let ended = run(dir.path(), &["serve", "--map-file", "map.txt"]).await;
    assert_eq!(ended.code, 3);
    for expected in ["map.txt:2", "map.txt:3"] {
        assert!(ended.stderr.contains(expected), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn a_word_that_is_no_log_level_is_named_with_its_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = "version = 1\n[log]\nlevel = \"loud\"\n[[listener]]\nlisten = \"127.0.0.1:0\"\n\
                [[route]]\nreply = { status = 204 }\n";
    std::fs::write(dir.path().join("t.toml"), text).expect("written");
    let expected =
        "unknown level \"loud\": expected off, error, warn, info, debug, trace, or target=level";
    for (arguments, code) in [
        (&["check", "t.toml"][..], 3),
        (&["serve", "t.toml"], 3),
        (&["serve", "--log-level", "loud"], 2),
    ] {
        let ended = run(dir.path(), arguments).await;
        assert_eq!(ended.code, code, "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(expected), "{}", ended.stderr);
        let place = if code == 3 {
            "t.toml:3:9"
        } else {
            "--log-level"
        };
        assert!(ended.stderr.contains(place), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn a_push_is_refused_by_the_file_that_is_at_fault() {
    let proxy = serve(&["--map", "id1=127.0.0.1"]).await;
    std::fs::write(proxy.file("big.wasm"), vec![0; 40_000_000]).expect("written");
    std::fs::write(proxy.file("bad.wasm"), "no component").expect("written");
    let writes = |name: &str, text: &str| std::fs::write(proxy.file(name), text).expect("written");
    writes(
        "typo.json",
        "{\n \"upstreams\": {\"st\": {\"a\": \"127.0.0.1\"}}}",
    );
    writes(
        "body.json",
        "{\"writes\": {\"upstreams\": {\"set\": {\"a\": \"127.0.0.1\"}}}}",
    );
    writes(
        "bucket.json",
        "{\"none\": {\"set\": {\"a\": \"127.0.0.1\"}}}",
    );
    writes(
        "value.json",
        "{\"upstreams\": {\"set\": {\"a\": \"no host!\"}}}",
    );
    let push = ["plugin", "push", "by-header"];
    let component = crate::harness::fixture_path("version-a");
    let component = component.to_str().expect("text");
    for _ in 0..5 {
        let ended = proxy.run(&[&push[..], &["big.wasm"]].concat()).await;
        assert_eq!(ended.code, 4, "{}", ended.stderr);
        let expected = "error: big.wasm: refused: 40.0 MB: the component is too large, \
                        expected at most 32MiB (admin.component_bytes_max)";
        assert!(ended.stderr.contains(expected), "{}", ended.stderr);
    }
    for (file, with, code, expected) in [
        (
            "bad.wasm",
            "typo.json",
            3,
            "typo.json: bucket \"upstreams\": unknown field `st`, expected one of `set`, ",
        ),
        ("bad.wasm", "typo.json", 3, " at line 2 column "),
        (
            "bad.wasm",
            "body.json",
            3,
            "expected what is under \"writes\" in POST /v1/batch",
        ),
        (component, "bucket.json", 3, "bucket.json: refused: "),
        (component, "value.json", 3, "value.json: refused: "),
        ("none.wasm", "value.json", 3, "none.wasm: No such file"),
    ] {
        let arguments = [&push[..], &[file, "--with", with]].concat();
        let ended = proxy.run(&arguments).await;
        assert_eq!(ended.code, code, "{with}: {}", ended.stderr);
        assert!(ended.stderr.contains(expected), "{with}: {}", ended.stderr);
    }
}
