//! Guests that mean harm, class by class, each with the outcome that is required of it.
//!
//! | class | tests |
//! |---|---|
//! | refused at upload | `upload`; larger than the limit: `deploy::a_component_over_the_limit_is_413_before_it_is_read` |
//! | refused at trial | `trial` |
//! | what costs the compiler | `compiling`, with the `bombs` |
//! | time of a request | `time` |
//! | memory of a request | `memory` |
//! | bad values | `values`, and `limits::no_bad_decision_is_acted_on` |
//! | floods of host calls | `floods` |
//! | after any trap | `after_trap`, and `guard` |

mod after_trap;
mod bombs;
mod compiling;
mod floods;
mod guest;
mod memory;
mod time;
mod trial;
mod upload;
mod values;

use crate::harness::{Setup, TestProxy, TestUpstream, fixture_path};

/// A deadline that is soon over, and is kept by what does nothing.
const CUT_SOON: &str = "deadline = \"100ms\"";

/// A proxy whose router is `version-a`, and beside it the plugin `hostile` without a version, for what is under `/hostile`.
/// `limits` are lines of its table of limits, in the place of its deadline, `admin` of the one of the admin API.
async fn proxy_with(limits: &str, admin: &str) -> (TestProxy, TestUpstream) {
    let upstream = TestUpstream::saying("up").await;
    let mut setup = Setup::new(format!(
        "[buckets.upstreams]\nbackend = \"memory\"\n\
         [buckets.notes]\nbackend = \"memory\"\nvalues = \"bytes\"\n\
         [plugins.router]\nsource = \"{}\"\nbuckets = {{ upstreams = \"read\" }}\nsettings = {{ header = \"x-id\" }}\n\
         limits = {{ deadline = \"2s\" }}\n\
         [plugins.hostile]\nbuckets = {{ upstreams = \"write\", notes = \"write\" }}\nsettings = {{ header = \"x-id\" }}\n\
         [plugins.hostile.limits]\n{limits}\n\
         [[route]]\nname = \"hostile\"\nmatch = {{ path = \"/hostile\" }}\nplugin = \"hostile\"\n\
         [[route]]\nname = \"router\"\nplugin = \"router\"\n",
        fixture_path("version-a").display(),
    ));
    setup.frame = setup
        .frame
        .replace("[admin]\n", &format!("[admin]\n{admin}\n"));
    let proxy = setup.start().await;
    proxy.admin().set("upstreams", "id1", "127.0.0.1").await;
    (proxy, upstream)
}

async fn proxy() -> (TestProxy, TestUpstream) {
    proxy_with(CUT_SOON, "").await
}

/// The router, whose version is the one from the config, answers.
async fn serves(proxy: &TestProxy, upstream: &TestUpstream) {
    let fields = [("x-id", "id1"), ("x-port", &*upstream.port())];
    let response = proxy.get("/", &fields).await;
    assert_eq!((response.status, &*response.text()), (200, "up"));
    assert_eq!(response.header("x-version"), "a");
}

/// Resident memory grows by less than so many MiB while something is done.
async fn grows_by_less_than(proxy: &TestProxy, mebibytes: u64, work: impl Future<Output = ()>) {
    let before = proxy.rss_kib();
    work.await;
    let grown = proxy.rss_kib().saturating_sub(before);
    assert!(grown < mebibytes << 10, "{grown} KiB");
}

/// Calls of the plugin `hostile` that ended so reach a number.
async fn counted(proxy: &TestProxy, outcome: &str, at_least: f64) {
    let begin = format!("throwbar_plugin_calls_total{{plugin=\"hostile\",outcome=\"{outcome}\"}}");
    let admin = proxy.admin();
    admin.metric_is(&begin, |count| count >= at_least).await;
}
