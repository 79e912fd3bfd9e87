use super::super::bucket_of;
use super::*;
use std::path::Path;

const CONFIG: &str = r#"
http {
    # map $commented $out { a b; }
    map $http_x_id $upstream {
        volatile;
        default "";
        id1 10.0.0.1;
        "id 2" 10.0.0.2:81;   # two words
        \default 10.0.0.3;
    }
    server { listen 80; location / { proxy_pass http://$upstream; } }
    map $host $name {
        hostnames;
        A.example.com 10.0.0.9;
        *.example.com 10.0.0.1;
        ~^re 10.0.0.1;
        "default" 10.0.0.1;
        b ${other}x;
        c d e;
        a.example.com 10.0.0.2;
        a*b 10.0.0.3;
    }
}
"#;

const ALL: [LookupKind; 5] = LookupKind::ALL;

fn entry(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn read(text: &str, name: Option<&str>, kinds: &[LookupKind]) -> Result<Found, Vec<String>> {
    let mut includes = Includes::beside(Path::new("nginx.conf"));
    parse(text, name, bucket_of(kinds), &mut includes)
}

/// A map with `hostnames` and these entries.
fn hosts(entries: &str, kinds: &[LookupKind]) -> Found {
    let text = format!("map $host $to {{ hostnames;\n{entries} }}");
    read(&text, None, kinds).expect("a map")
}

fn lines(found: &Found) -> Vec<&str> {
    let places = found.unsupported.iter();
    places
        .filter_map(|text| Some(text.split_once(':')?.0))
        .collect()
}

#[test]
fn a_block_becomes_entries() {
    let found = read(CONFIG, Some("$upstream"), &[]).expect("a map");
    assert_eq!(
        found.entries,
        [
            entry("id1", "10.0.0.1"),
            entry("id 2", "10.0.0.2:81"),
            entry("default", "10.0.0.3")
        ]
    );
    assert_eq!(found.unsupported, [""; 0]);
    let note = "the map on line 4: nginx compares keys without regard to case";
    assert!(found.notes[0].contains(note), "{:?}", found.notes);
}

#[test]
fn what_a_bucket_cannot_do_is_told_with_its_line() {
    let found = read(CONFIG, Some("name"), &[]).expect("a map");
    assert_eq!(found.entries, [entry("a.example.com", "10.0.0.9")]);
    let all = [
        "line 15", "line 16", "line 17", "line 18", "line 19", "line 20", "line 21",
    ];
    assert_eq!(lines(&found), all);
}

#[test]
fn what_the_bucket_declares_is_carried_over() {
    let found = read(CONFIG, Some("name"), &ALL).expect("a map");
    assert_eq!(
        found.entries,
        [
            entry("a.example.com", "10.0.0.9"),
            entry("*", "10.0.0.1"),
            entry("*.example.com", "10.0.0.1"),
            entry("re:^re", "10.0.0.1"),
        ]
    );
    assert_eq!(lines(&found), ["line 18", "line 19", "line 20", "line 21"]);
    let caseless = read("map $a $b { ~*X 10.0.0.1; }", None, &ALL).expect("a map");
    assert_eq!(caseless.entries, [entry("re:(?i)X", "10.0.0.1")]);
}

#[test]
fn expressions_are_tried_in_the_order_of_the_map() {
    let found = read("map $a $b { ~^b 1; ~^a 2; ~^b 3; }", None, &ALL).expect("a map");
    let numbered = [entry("re:(?<n1>)^b", "1"), entry("re:(?<n2>)^a", "2")];
    assert_eq!(found.entries, numbered);
    assert!(found.notes[0].contains("re:(?<n1>)^b"), "{:?}", found.notes);
    let foreign = read("map $a $b { ~^a(?=b) 1; }", None, &ALL).expect("a map");
    assert!(
        foreign.unsupported[0].contains("look-around"),
        "{foreign:?}"
    );
}

#[test]
fn a_mask_at_the_end_becomes_a_prefix_where_no_suffix_is_before_it() {
    let prefix = [LookupKind::Prefix, LookupKind::Suffix];
    let found = hosts("WWW.example.* 1;\n*.example.com 1;", &prefix);
    let masks = [entry("www.example.*", "1"), entry("*.example.com", "1")];
    assert_eq!(found.entries, masks);

    let entries = "www.* 1;\nwww.example.* 2;\n*.example.com 3;\n~^www 4;";
    let found = hosts(entries, &ALL);
    assert_eq!(
        found.entries,
        [
            entry("*.example.com", "3"),
            entry("re:(?<n1>)(?i)^www\\.example\\.[^.]", "2"),
            entry("re:(?<n2>)(?i)^www\\.[^.]", "1"),
            entry("re:(?<n3>)^www", "4"),
        ]
    );
    let found = hosts(entries, &prefix);
    assert_eq!(found.entries, [entry("*.example.com", "3")]);
    assert_eq!(
        found.unsupported[1],
        "line 2: www.* 1: nginx tries *.example.com on line 4 before it, and a bucket tries prefixes before suffixes: \
         www.x.example.com would find another entry; expected \"regex\" in `lookup` of the bucket"
    );
    let bare = hosts("www.* 1;", &[]);
    assert!(
        bare.unsupported[0].contains("without \"prefix\""),
        "{bare:?}"
    );
}

#[test]
fn masks_are_masks_with_hostnames_alone_and_what_nginx_refuses_is_refused() {
    let literal = "map $a $b { *.example.com 1; mail.* 2; }";
    let found = read(literal, None, &[]).expect("a map");
    assert_eq!(
        found.entries,
        [entry("*.example.com", "1"), entry("mail.*", "2")]
    );
    let looks = read(literal, None, &ALL).expect("a map");
    assert_eq!((looks.entries.len(), looks.unsupported.len()), (0, 2));
    assert!(looks.unsupported[0].contains("of kind suffix"), "{looks:?}");
    for entries in [
        ".a.b 1;\na.b 2;",
        ".a.b 1;\n*.a.b 2;",
        "a.b 1;\n.A.b 2;",
        "w.* 1;\nw.* 2;",
        "default 1;\ndefault 2;",
        "a 1;\na..b 2;",
    ] {
        let found = hosts(entries, &ALL);
        assert_eq!(lines(&found), ["line 3"], "{entries}");
        assert!(found.unsupported[0].contains("nginx refuses"), "{found:?}");
    }
}

#[test]
fn an_empty_value_is_told_where_values_are_addresses() {
    let bucket = Bucket {
        has_addresses: true,
        ..bucket_of(&ALL)
    };
    let mut includes = Includes::beside(Path::new(""));
    let text = "map $a $b { a \"\"; default \"\"; }";
    let found = parse(text, None, bucket, &mut includes).expect("a map");
    assert_eq!((found.entries.len(), found.unsupported.len()), (0, 1));
    let bytes = read(text, None, &ALL).expect("a map");
    assert_eq!(bytes.entries, [entry("a", "")]);
}

#[test]
fn included_files_stand_where_they_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).expect("written");
    };
    write("b.map", "b 2;\ninclude more;\n");
    write("a.map", "a 1;\nx $y;");
    write("more", "c 3;");
    let parsed = |text: &str| {
        let mut includes = Includes::beside(&dir.path().join("nginx.conf"));
        parse(text, None, Bucket::default(), &mut includes)
    };
    let found = parsed("map $a $b {\n z 0;\n include *.map;\n}").expect("a map");
    let all = [
        entry("z", "0"),
        entry("a", "1"),
        entry("b", "2"),
        entry("c", "3"),
    ];
    assert_eq!(found.entries, all);
    let told = "a.map: line 2: x $y: a value with variables has no counterpart";
    assert_eq!(found.unsupported, [told]);

    write("loop", "include loop;");
    write("close", "a 1; }");
    for (file, said) in [
        (
            "loop",
            "loop: line 1: include loop: is more than 10 files deep",
        ),
        ("close", "close: line 1: unexpected `}`"),
        ("gone", "line 1: include gone: "),
    ] {
        let problems = parsed(&format!("map $a $b {{ include {file}; }}")).expect_err(file);
        assert!(problems[0].starts_with(said), "{problems:?}");
    }
}

#[test]
fn one_of_several_maps_has_to_be_named() {
    let problem = |text: &str, name| read(text, name, &[]).expect_err("refused").join("\n");
    assert!(problem(CONFIG, None).contains("$upstream, $name"));
    assert!(problem(CONFIG, Some("x")).contains("no map that sets $x"));
    assert!(problem("server { }", None).contains("no map block"));
    assert!(read("map $a $b { c d; }", None, &[]).is_ok());
}
