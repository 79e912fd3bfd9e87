//! What costs its compiler more than it looks: made here, each from a few lines.

use super::guest::beside;
use std::fmt::Write;

/// A component, and what it is.
pub(super) struct Bomb {
    /// What it is.
    pub(super) name: &'static str,
    /// Its bytes.
    pub(super) component: Vec<u8>,
}

/// Makes the text of one.
type Maker = fn() -> String;

/// Every one of them.
pub(super) fn all() -> Vec<Bomb> {
    let makers: [(&str, Maker); 8] = [
        ("40,000 statements in one function", statements),
        ("40,000 functions", functions),
        ("8,000 nested blocks", nested_blocks),
        ("a branch table of 65,000 ways", branch_table),
        ("50,000 locals", locals),
        ("100,000 types", types),
        (
            "a component that is instantiated a billion times",
            instances,
        ),
        ("a type of a billion parts", wide_type),
    ];
    let mut bombs: Vec<Bomb> = makers
        .into_iter()
        .map(|(name, maker)| Bomb {
            name,
            component: beside(&maker()),
        })
        .collect();
    let mut component = beside("");
    append(&mut component, &nested_components());
    bombs.push(Bomb {
        name: "1,000 components one inside another",
        component,
    });
    bombs
}

fn repeated(count: u32, mut part: impl FnMut(u32) -> String) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        text.push_str(&part(number));
        text
    })
}

/// Each depends on the one before, and calls nothing that could be left out.
pub(super) fn statements() -> String {
    let body = repeated(40_000, |number| {
        format!(
            "(local.set 1 (i32.xor (i32.mul (local.get 1) (i32.const {})) (i32.load (local.get 1))))",
            number | 1
        )
    });
    format!(
        "(core module $b (memory 1) (func (export \"f\") (param i32) (result i32) (local i32) {body} (local.get 1)))"
    )
}

/// Eleven bytes each.
pub(super) fn functions() -> String {
    let functions = repeated(40_000, |number| {
        format!("(func (param i32) (result i32) (i32.add (local.get 0) (i32.const {number})))")
    });
    format!("(core module $b {functions})")
}

fn nested_blocks() -> String {
    let (open, close) = ("block ".repeat(8_000), "end ".repeat(8_000));
    format!("(core module $b (func (export \"f\") {open} nop {close}))")
}

fn branch_table() -> String {
    let ways = "0 1 ".repeat(32_500);
    format!(
        "(core module $b (func (export \"f\") (param i32) (block (block (br_table {ways} 0 (local.get 0))))))"
    )
}

fn locals() -> String {
    let locals = "i64 ".repeat(49_999);
    let uses = repeated(5_000, |number| {
        format!(
            "(local.set {number} (i64.add (local.get {}) (i64.const 1)))",
            49_000 - number
        )
    });
    format!("(core module $b (func (export \"f\") (local {locals}) {uses}))")
}

fn types() -> String {
    let types = repeated(100_000, |number| match number % 2 {
        0 => "(type (func (param i32 i64)))".to_owned(),
        _ => "(type (func (param f32) (result f64)))".to_owned(),
    });
    format!("(core module $b {types})")
}

/// As bytes, since the reader of text has a bound of its own.
fn nested_components() -> Vec<u8> {
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";
    (0..1_000).fold(EMPTY.to_vec(), |inner, _| {
        let mut outer = EMPTY.to_vec();
        append(&mut outer, &inner);
        outer
    })
}

/// Appends a section that is a component.
fn append(component: &mut Vec<u8>, inner: &[u8]) {
    component.push(4);
    let mut length = inner.len();
    while length >= 0x80 {
        component.push(length as u8 | 0x80);
        length >>= 7;
    }
    component.push(length as u8);
    component.extend_from_slice(inner);
}

/// Thirty components, each of which has the one before it twice; the innermost has code.
pub(super) fn instances() -> String {
    let mut text =
        "(component $c0 (core module $m (func (export \"f\"))) (core instance (instantiate $m)))"
            .to_owned();
    for level in 1..=30 {
        let inner = level - 1;
        text = format!(
            "(component $c{level} {text} (instance (instantiate $c{inner})) (instance (instantiate $c{inner})))"
        );
    }
    format!("{text} (instance (instantiate $c30))")
}

/// Thirty types, each of which is a pair of the one before it.
fn wide_type() -> String {
    let mut text = "(type $t0 (tuple u32 u32))".to_owned();
    for level in 1..=30 {
        let inner = level - 1;
        write!(text, "(type $t{level} (tuple $t{inner} $t{inner}))").expect("text");
    }
    text
}
