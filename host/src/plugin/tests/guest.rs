//! Guests written by hand, so that each does exactly one thing.
//!
//! Memory: 0 holds what `init` returns (zeros: success, nothing subscribed), 256 the decision, 1024 strings, 2048 what
//! imports return, 3072 what `migrate` or `buckets` returns; lists that the host passes go to 8192 and up.

/// What a guest does.
pub(super) struct Guest<'a> {
    /// Data segments and globals.
    pub(super) data: &'a str,
    /// Instructions before `init` returns.
    pub(super) init: &'a str,
    /// Instructions before `route` returns the decision at 256.
    pub(super) route: &'a str,
}

/// A decision to pass.
pub(super) const PASS: &str = r#"(data (i32.const 256) "\03")"#;
/// A reply of status 200 whose body is the 128 bytes at 2048.
pub(super) const REPLY: &str = r#"(data (i32.const 256) "\02\00\00\00\c8\00\00\00\00\00\00\00\00\00\00\00\00\08\00\00\80\00\00\00")"#;

/// What a guest with a migration exports beside, `migrate` being its type.
fn migration(migrate: &str) -> String {
    format!(
        r#"(func $migrate {migrate}
    (canon lift (core func $i "migrate") (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
  (instance $migration (export "migrate" (func $migrate)))
  (export "throwbar:plugin/migration@0.1.0" (instance $migration))"#
    )
}

/// What a guest that watches exports beside, `changes` being the type of what it is told.
fn watcher(changes: &str) -> String {
    format!(
        r#"(type $change_ (record (field "key" string) (field "value" (option (list u8)))))
  (export $change "change" (type $change_))
  (func $buckets (result (list string)) (canon lift (core func $i "buckets") (memory (core memory $m "memory"))))
  (func $changed (param "bucket" u32) (param "changes" {changes}) (param "more" bool)
    (canon lift (core func $i "changed") (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
  (instance $watcher (export "change" (type $change)) (export "buckets" (func $buckets)) (export "changed" (func $changed)))
  (export "throwbar:plugin/watcher@0.1.0" (instance $watcher))"#
    )
}

fn told(instructions: &str) -> String {
    format!(
        r#"(func (export "buckets") (result i32) (i32.const 3072))
           (func (export "changed") (param $bucket i32) (param $ptr i32) (param $len i32) (param $more i32) {instructions})"#
    )
}

impl Guest<'_> {
    /// The component.
    pub(super) fn build(&self) -> Vec<u8> {
        self.exporting("", "")
    }

    /// The same with a migration: instructions before it returns the result at 3072 (zeros: success).
    pub(super) fn migrating(&self, instructions: &str) -> Vec<u8> {
        let core = format!(
            r#"(func (export "migrate") (param $some i32) (param $ptr i32) (param $len i32) (result i32)
                 {instructions} (i32.const 3072))"#
        );
        let of_the_contract =
            r#"(param "from-version" (option string)) (result (result (error string)))"#;
        self.exporting(&core, &migration(of_the_contract))
    }

    /// The same that watches the buckets listed at 3072; instructions for what it is told.
    pub(super) fn watching(&self, instructions: &str) -> Vec<u8> {
        self.exporting(&told(instructions), &watcher("(list $change)"))
    }

    /// The same with functions of those names, one of another type.
    pub(super) fn watching_wrongly(&self) -> Vec<u8> {
        self.exporting(&told(""), &watcher("(list string)"))
    }

    /// The same that watches by that interface and by `wasi:keyvalue/watcher`.
    pub(super) fn watching_twice(&self) -> Vec<u8> {
        let twice = watcher("(list $change)")
            + r#"(export "wasi:keyvalue/watcher@0.2.0-draft" (instance $watcher))"#;
        self.exporting(&told(""), &twice)
    }

    /// The same with a function of that name and of another type.
    pub(super) fn migrating_wrongly(&self) -> Vec<u8> {
        let core = r#"(func (export "migrate") (result i32) (i32.const 3072))"#;
        self.exporting(core, &migration("(result u32)"))
    }

    fn exporting(&self, core: &str, exports: &str) -> Vec<u8> {
        let Guest { data, init, route } = self;
        let text = format!(
            r#"(component
  (import "throwbar:plugin/lookup@0.1.0" (instance $lookup
    (export "entry" (func (param "bucket" u32) (param "key" string) (param "port" (option u16)) (result (option u32))))
    (export "entry-at" (func (param "bucket" u32) (param "key" u32) (param "port" (option u32)) (result (option u32))))))
  (import "throwbar:plugin/kv@0.1.0" (instance $kv
    (type $e (record (field "value" (list u8)) (field "revision" u64)))
    (export "entry" (type $entry (eq $e)))
    (type $er (variant (case "no-such-bucket") (case "access-denied") (case "invalid-value" string) (case "quota" string) (case "conflict" (option u64))))
    (export "error" (type $error (eq $er)))
    (export "get" (func (param "bucket" string) (param "key" string) (result (result (option $entry) (error $error)))))
    (export "put" (func (param "bucket" string) (param "key" string) (param "value" (list u8)) (result (result (error $error)))))
    (export "delete" (func (param "bucket" string) (param "key" string) (result (result (error $error)))))
    (export "compare-and-set" (func (param "bucket" string) (param "key" string) (param "expected" (option u64)) (param "value" (option (list u8))) (result (result (error $error)))))
    (export "keys" (func (param "bucket" string) (param "prefix" string) (param "after" (option string)) (param "limit" u32) (result (result (list string) (error $error)))))))
  (import "wasi:config/store@0.2.0-rc.1" (instance $config
    (type $er (variant (case "upstream" string) (case "io" string)))
    (export "error" (type $error (eq $er)))
    (export "get" (func (param "key" string) (result (result (option string) (error $error)))))))
  (import "wasi:logging/logging@0.1.0-draft" (instance $logging
    (type $l (enum "trace" "debug" "info" "warn" "error" "critical"))
    (export "level" (type $level (eq $l)))
    (export "log" (func (param "level" $level) (param "context" string) (param "message" string)))))
  (core module $memory
    (memory (export "memory") 1)
    (global $next (mut i32) (i32.const 8192))
    (func (export "realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
      (global.set $next (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.get $next)
      (global.set $next (i32.add (global.get $next) (local.get $size)))))
  (core instance $m (instantiate $memory))
  (core func $entry (canon lower (func $lookup "entry") (memory (core memory $m "memory"))))
  (core func $entry_at (canon lower (func $lookup "entry-at") (memory (core memory $m "memory"))))
  (core func $get (canon lower (func $kv "get") (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
  (core func $put (canon lower (func $kv "put") (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
  (core func $delete (canon lower (func $kv "delete") (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
  (core func $cas (canon lower (func $kv "compare-and-set") (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
  (core func $keys (canon lower (func $kv "keys") (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
  (core func $setting (canon lower (func $config "get") (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
  (core func $log (canon lower (func $logging "log") (memory (core memory $m "memory"))))
  (core module $code
    (import "m" "memory" (memory 1))
    (import "host" "entry" (func $entry (param i32 i32 i32 i32 i32 i32)))
    (import "host" "entry-at" (func $entry_at (param i32 i32 i32 i32 i32)))
    (import "host" "get" (func $get (param i32 i32 i32 i32 i32)))
    (import "host" "put" (func $put (param i32 i32 i32 i32 i32 i32 i32)))
    (import "host" "delete" (func $delete (param i32 i32 i32 i32 i32)))
    (import "host" "cas" (func $cas (param i32 i32 i32 i32 i32 i64 i32 i32 i32 i32)))
    (import "host" "keys" (func $keys (param i32 i32 i32 i32 i32 i32 i32 i32 i32)))
    (import "host" "setting" (func $setting (param i32 i32 i32)))
    (import "host" "log" (func $log (param i32 i32 i32 i32 i32)))
    {data}
    (func (export "init") (result i32) {init} (i32.const 0))
    (func (export "route") (param $some i32) (param $ptr i32) (param $len i32) (result i32) {route} (i32.const 256))
    {core})
  (core instance $i (instantiate $code
    (with "m" (instance $m))
    (with "host" (instance
      (export "entry" (func $entry)) (export "entry-at" (func $entry_at)) (export "get" (func $get))
      (export "put" (func $put)) (export "delete" (func $delete)) (export "cas" (func $cas)) (export "keys" (func $keys))
      (export "setting" (func $setting)) (export "log" (func $log))))))
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
  (export $decision "decision" (type $decision_))
  (func $init (result (result $subscription (error string)))
    (canon lift (core func $i "init") (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
  (func $route (param "fields" (option string)) (result $decision)
    (canon lift (core func $i "route") (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
  (instance $routing (export "init" (func $init)) (export "route" (func $route)))
  (export "throwbar:plugin/routing@0.1.0" (instance $routing))
  {exports})"#
        );
        wat::parse_str(&text).expect("a component")
    }
}

/// A guest that only replies with this status.
pub(crate) fn replies(status: u16) -> Vec<u8> {
    let [low, high] = status.to_le_bytes();
    let data = format!(r#"(data (i32.const 256) "\02\00\00\00\{low:02x}\{high:02x}")"#);
    let guest = Guest {
        data: &data,
        init: "",
        route: "",
    };
    guest.build()
}
