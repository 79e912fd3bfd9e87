//! The `path-prefix` plugin: the longest prefix of the path decides.

use throwbar::prelude::*;

/// Routes to the target of the longest prefix that the path begins with; other paths are left to the next route.
///
/// A prefix ends at a segment: `/api` holds for `/api` and `/api/users`, not for `/apis`.
///
/// | setting | default | |
/// |---|---|---|
/// | `prefix.<path>` | | an upstream, or an address such as `10.0.0.7:8080`; at least one such setting |
/// | `strip` | `false` | `true`: take the prefix away before forwarding |
#[derive(Debug)]
pub struct PathPrefix {
    path: Subscribed,
    /// There when prefixes are stripped, since a rewritten path has to be given its query again.
    query: Option<Subscribed>,
    /// The longest prefix first, without a slash at its end.
    targets: Vec<(String, Target)>,
}

#[throwbar::router]
impl Router for PathPrefix {
    fn init(setup: &mut Setup) -> Result<Self, String> {
        let mut targets: Vec<(String, Target)> = Vec::new();
        for (name, target) in config::all() {
            let Some(prefix) = name.strip_prefix("prefix.") else {
                continue;
            };
            if !prefix.starts_with('/') {
                return Err(format!(
                    "setting {name:?}: expected a path that begins with \"/\""
                ));
            }
            if target.is_empty() {
                return Err(format!(
                    "setting {name:?} is empty, expected an upstream or an address"
                ));
            }
            let prefix = prefix.trim_end_matches('/').to_owned();
            if targets.iter().any(|(known, _)| *known == prefix) {
                return Err(format!(
                    "setting {name:?}: the same prefix is there with and without \"/\" at its end"
                ));
            }
            let target = match target.contains(':') {
                true => Target::address(target),
                false => Target::upstream(target),
            };
            targets.push((prefix, target));
        }
        if targets.is_empty() {
            return Err(
                "no setting begins with \"prefix.\", expected at least one such as \"prefix./api\""
                    .into(),
            );
        }
        targets.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        let strip = config::parse("strip")?.unwrap_or(false);
        Ok(Self {
            path: setup.field(Field::Path),
            query: strip.then(|| setup.field(Field::Query)),
            targets,
        })
    }

    fn route(&self, req: &Request) -> Decision {
        let path = req.get(self.path).unwrap_or_default();
        for (prefix, target) in &self.targets {
            let Some(rest) = path.strip_prefix(prefix.as_str()) else {
                continue;
            };
            if !rest.is_empty() && !rest.starts_with('/') {
                continue;
            }
            let Some(query) = self.query else {
                return target.clone().into();
            };
            let mut rewritten = match rest {
                "" => "/".to_owned(),
                rest => rest.to_owned(),
            };
            if let Some(query) = req.get(query) {
                rewritten.push('?');
                rewritten.push_str(query);
            }
            return Forward::to(target.clone()).rewrite(rewritten).into();
        }
        Decision::Pass
    }
}

#[cfg(test)]
mod tests {
    use super::PathPrefix;
    use throwbar::Target;
    use throwbar::testing::{Host, Outcome, get};

    fn host() -> Host {
        Host::new()
            .config("prefix./api", "api")
            .config("prefix./api/v2/", "10.0.0.7:8080")
    }

    #[test]
    fn the_longest_prefix_wins_and_ends_at_a_segment() {
        let plugin = host().start::<PathPrefix>().unwrap();
        let to = |path| plugin.route(get(path)).forwarded().to;
        assert_eq!(to("/api"), Target::upstream("api"));
        assert_eq!(to("/api/v1?q"), Target::upstream("api"));
        assert_eq!(to("/api/v2"), Target::address("10.0.0.7:8080"));
        assert_eq!(to("/api/v2/x"), Target::address("10.0.0.7:8080"));
        assert_eq!(to("/api/v22"), Target::upstream("api"));
        assert_eq!(plugin.route(get("/apis")), Outcome::Passed);
        assert_eq!(plugin.route(get("/")), Outcome::Passed);
    }

    #[test]
    fn a_slash_is_the_prefix_of_everything() {
        let host = host().config("prefix./", "site");
        let plugin = host.start::<PathPrefix>().unwrap();
        let forwarded = plugin.route(get("/apis")).forwarded();
        assert_eq!(forwarded.to, Target::upstream("site"));
        assert_eq!(forwarded.path, "/apis");
    }

    #[test]
    fn stripping_keeps_the_query_and_the_first_slash() {
        let plugin = host()
            .config("strip", "true")
            .start::<PathPrefix>()
            .unwrap();
        let path = |path| plugin.route(get(path)).forwarded().path;
        assert_eq!(path("/api"), "/");
        assert_eq!(path("/api?a=b"), "/?a=b");
        assert_eq!(path("/api/v1/x?a=b?c"), "/v1/x?a=b?c");
        assert_eq!(path("/api/v2/"), "/");
    }

    #[test]
    fn a_config_that_cannot_work_is_refused() {
        let error = |host: Host| host.start::<PathPrefix>().err().unwrap();
        assert!(error(Host::new()).contains("at least one"));
        assert!(error(Host::new().config("prefix.api", "a")).contains("\"prefix.api\""));
        assert!(error(Host::new().config("prefix./a", "")).contains("\"prefix./a\""));
        assert!(error(host().config("prefix./api/", "b")).contains("the same prefix"));
        assert!(error(host().config("strip", "yes")).contains("\"yes\""));
    }
}
