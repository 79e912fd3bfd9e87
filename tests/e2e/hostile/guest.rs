//! Guests written by hand, for what no compiler makes: each does exactly one thing.
//!
//! Memory: 0 holds what `init` returns (zeros: success, nothing subscribed), 256 the decision. Without more, a guest passes
//! every request.

/// A guest in parts, each of them WebAssembly text.
#[derive(Default)]
pub(super) struct Guest<'a> {
    /// Imports of the component, and the functions lowered from them, which may use `$m`, the instance with the memory.
    pub(super) imports: &'a str,
    /// What the code is given of these, as exports of an instance.
    pub(super) given: &'a str,
    /// Imports of the code, data, globals, tables and functions.
    pub(super) items: &'a str,
    /// Whatever else the component has.
    pub(super) beside: &'a str,
    /// Instructions before `init` returns.
    pub(super) init: &'a str,
    /// Instructions before `route` returns the decision at 256.
    pub(super) route: &'a str,
    /// Instructions before memory is given.
    pub(super) realloc: &'a str,
    /// Instructions after the host has read the decision.
    pub(super) after: &'a str,
    /// Pages of memory, 1 if that is 0.
    pub(super) pages: u32,
}

/// What `init` returns of a guest that has the path passed to it.
pub(super) const TAKES_PATH: &str =
    r#"(data (i32.const 4) "\40\00\00\00\01\00\00\00") (data (i32.const 64) "\03")"#;
/// Types of the router's interface.
const TYPES: &str = r#"
  (type $field_ (variant (case "method") (case "scheme") (case "authority") (case "path") (case "query") (case "client-ip") (case "upgrade") (case "header" string)))
  (export $field "field" (type $field_))
  (type $edits_ (record (field "request-remove" (list string)) (field "request-set" (list (tuple string string))) (field "response-remove" (list string)) (field "response-set" (list (tuple string string)))))
  (export $edits "edits" (type $edits_))
  (type $subscription_ (record (field "fields" (list $field)) (field "slots" (list $field)) (field "buckets" (list string)) (field "edits" $edits)))
  (export $subscription "subscription" (type $subscription_))
  (type $target_ (variant (case "entry" u32) (case "address" string) (case "upstream" string) (case "upstream-by-key" (tuple string string))))
  (export $target "target" (type $target_))
  (type $forward_ (record (field "to" $target) (field "edits" $edits) (field "path" (option string)) (field "key" (option string)) (field "connect-timeout-ms" (option u32)) (field "response-timeout-ms" (option u32)) (field "stream-idle-timeout-ms" (option u32)) (field "stream-max-age-ms" (option u32))))
  (export $forward "forward" (type $forward_))
  (type $reply_ (record (field "status" u16) (field "headers" (list (tuple string string))) (field "body" (list u8))))
  (export $reply "reply" (type $reply_))
  (type $decision_ (variant (case "to" $target) (case "forward" $forward) (case "reply" $reply) (case "pass")))
  (export $decision "decision" (type $decision_))"#;

impl Guest<'_> {
    /// The component.
    pub(super) fn build(&self) -> Vec<u8> {
        let Guest {
            imports,
            given,
            items,
            beside,
            init,
            route,
            realloc,
            after,
            pages,
        } = self;
        let pages = (*pages).max(1);
        let decision = match items.contains("i32.const 256) \"") {
            true => "",
            false => r#"(data (i32.const 256) "\03")"#,
        };
        let text = format!(
            r#"(component
  (core module $memory
    (memory (export "memory") {pages})
    (global $next (mut i32) (i32.const 8192))
    (func (export "realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
      {realloc}
      (global.set $next (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.get $next)
      (global.set $next (i32.add (global.get $next) (local.get $size)))))
  (core instance $m (instantiate $memory))
  {imports}
  (core module $code
    (import "m" "memory" (memory {pages}))
    {items}
    {decision}
    (func (export "init") (result i32) {init} (i32.const 0))
    (func (export "route") (param $some i32) (param $ptr i32) (param $len i32) (result i32) {route} (i32.const 256))
    (func (export "after") (param i32) {after}))
  (core instance $i (instantiate $code (with "m" (instance $m)) (with "host" (instance {given}))))
  {beside}
  {TYPES}
  (func $init (result (result $subscription (error string)))
    (canon lift (core func $i "init") (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
  (func $route (param "fields" (option string)) (result $decision)
    (canon lift (core func $i "route") (memory (core memory $m "memory")) (realloc (core func $m "realloc")) (post-return (core func $i "after"))))
  (instance $routing (export "init" (func $init)) (export "route" (func $route)))
  (export "throwbar:plugin/routing@0.1.0" (instance $routing)))"#
        );
        wat::parse_str(&text).unwrap_or_else(|error| panic!("{error:.2000}"))
    }
}

/// A guest that passes every request, and has these items of a component beside.
pub(super) fn beside(items: &str) -> Vec<u8> {
    Guest {
        beside: items,
        ..Guest::default()
    }
    .build()
}
