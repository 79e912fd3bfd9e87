//! The `prefix-rules` plugin: as `path-prefix`, with rules that are data: a bucket holds them, and a change is in force for
//! the next request.

use std::collections::HashMap;
use throwbar::prelude::*;

/// Routes by the rule of the longest prefix that the path begins with; other paths are left to the next route.
///
/// A key of the bucket is a prefix, such as `/api`, which ends at a segment: it holds for `/api` and `/api/users`, not for
/// `/apis`. Its value is an upstream, or an address such as `10.0.0.7:8080`, and may be followed by ` strip`: the prefix is
/// taken away before forwarding. A rule that is neither is logged, and is as if it were not there.
///
/// | setting | default | |
/// |---|---|---|
/// | `bucket` | `rules` | the bucket, which holds bytes |
#[derive(Debug)]
pub struct PrefixRules {
    path: Subscribed,
    query: Subscribed,
}

/// The rules, parsed when they change.
#[derive(Debug, Default)]
pub struct Rules(HashMap<String, Rule>);

#[derive(Debug, Clone)]
struct Rule {
    target: Target,
    strip: bool,
}

impl View for Rules {
    fn buckets() -> Vec<String> {
        vec![config::get_or("bucket", "rules")]
    }

    fn set(&mut self, _bucket: &str, key: &str, value: &[u8]) {
        match parse(key, value) {
            Ok((prefix, rule)) => {
                self.0.insert(prefix, rule);
            }
            Err(reason) => {
                self.0.remove(key);
                log::warn(format!("rule {key:?} is left out: {reason}"));
            }
        }
    }

    fn delete(&mut self, _bucket: &str, key: &str) {
        self.0.remove(key);
    }
}

fn parse(key: &str, value: &[u8]) -> Result<(String, Rule), String> {
    if !key.starts_with('/') || (key.ends_with('/') && key != "/") {
        return Err("expected a path that begins with \"/\" and does not end with one".into());
    }
    let text = String::from_utf8_lossy(value);
    let mut words = text.split_whitespace();
    let (target, strip) = match (words.next(), words.next(), words.next()) {
        (Some(target), None, None) => (target, false),
        (Some(target), Some("strip"), None) => (target, true),
        _ => {
            let expected = "an upstream or an address, and \"strip\" if the prefix is to go";
            return Err(format!("{text:?}: expected {expected}"));
        }
    };
    let target = match target.contains(':') {
        true => Target::address(target),
        false => Target::upstream(target),
    };
    Ok((key.to_owned(), Rule { target, strip }))
}

impl Rules {
    /// The rule of the longest prefix, and what follows it.
    fn find<'p>(&self, path: &'p str) -> Option<(&Rule, &'p str)> {
        let slashes = path.rmatch_indices('/').map(|(at, _)| at);
        let mut ends = std::iter::once(path.len()).chain(slashes);
        ends.find_map(|end| Some((self.0.get(&path[..end])?, &path[end..])))
            .or_else(|| Some((self.0.get("/")?, path)))
    }
}

#[throwbar::router(view = Rules)]
impl Router for PrefixRules {
    fn init(setup: &mut Setup) -> Result<Self, String> {
        Ok(Self {
            path: setup.field(Field::Path),
            query: setup.field(Field::Query),
        })
    }

    fn route(&self, req: &Request) -> Decision {
        let path = req.get(self.path).unwrap_or_default();
        let found = view::with(|rules: &Rules| {
            let (rule, rest) = rules.find(path)?;
            Some((rule.clone(), rest))
        });
        let Some((rule, rest)) = found else {
            return Decision::Pass;
        };
        if !rule.strip {
            return rule.target.into();
        }
        let mut rewritten = match rest {
            "" => "/".to_owned(),
            rest => rest.to_owned(),
        };
        if let Some(query) = req.get(self.query) {
            rewritten.push('?');
            rewritten.push_str(query);
        }
        Forward::to(rule.target).rewrite(rewritten).into()
    }
}

#[cfg(test)]
mod tests {
    use super::{PrefixRules, Rules};
    use throwbar::Target;
    use throwbar::testing::{Host, Outcome, Plugin, get};

    fn start(host: &Host) -> Plugin<PrefixRules> {
        host.start().unwrap().with_view::<Rules>()
    }

    #[test]
    fn the_longest_prefix_wins_and_ends_at_a_segment() {
        let rules = [("/api", "api"), ("/api/v2", "10.0.0.7:8080")];
        let plugin = start(&Host::new().bytes_bucket("rules", rules));
        let to = |path| plugin.route(get(path)).forwarded().to;
        assert_eq!(to("/api"), Target::upstream("api"));
        assert_eq!(to("/api/v1/x?q"), Target::upstream("api"));
        assert_eq!(to("/api/v2/"), Target::address("10.0.0.7:8080"));
        assert_eq!(to("/api/v22"), Target::upstream("api"));
        for none in ["/apis", "/"] {
            assert_eq!(plugin.route(get(none)), Outcome::Passed, "{none}");
        }
    }

    #[test]
    fn a_change_is_in_force_for_the_next_request() {
        let host = Host::new().bytes_bucket("rules", [("/", "site")]);
        let plugin = start(&host);
        let to = |path| plugin.route(get(path)).forwarded().to;
        assert_eq!(to("/a/b"), Target::upstream("site"));
        host.put("rules", "/a", "a");
        assert_eq!(to("/a/b"), Target::upstream("a"));
        host.put("rules", "/a", "b:1");
        assert_eq!(to("/a/b"), Target::address("b:1"));
        host.delete("rules", "/a");
        assert_eq!(to("/a/b"), Target::upstream("site"));
    }

    #[test]
    fn stripping_keeps_the_query_and_the_first_slash() {
        let rules = [("/api", "api strip"), ("/", "site strip")];
        let plugin = start(&Host::new().bytes_bucket("rules", rules));
        let path = |path| plugin.route(get(path)).forwarded().path;
        assert_eq!(path("/api"), "/");
        assert_eq!(path("/api?a=b"), "/?a=b");
        assert_eq!(path("/api/v1/x?a=b?c"), "/v1/x?a=b?c");
        assert_eq!(path("/other/x"), "/other/x");
    }

    #[test]
    fn a_rule_that_is_none_is_left_out_and_logged() {
        let host = Host::new()
            .config("bucket", "paths")
            .bytes_bucket("paths", [("/a", "a")]);
        let plugin = start(&host);
        assert_eq!(
            plugin.route(get("/a")).forwarded().to,
            Target::upstream("a")
        );
        for bad in ["", "a strip twice", "a b"] {
            host.put("paths", "/a", bad);
            assert_eq!(plugin.route(get("/a")), Outcome::Passed, "{bad:?}");
        }
        host.put("paths", "no-slash", "a");
        plugin.route(get("/"));
        let log = host.log();
        assert_eq!(log.len(), 4, "{log:?}");
        assert!(
            log[1]
                .1
                .contains("rule \"/a\" is left out: \"a strip twice\""),
            "{log:?}"
        );
        assert!(log[3].1.contains("rule \"no-slash\""), "{log:?}");
    }
}
