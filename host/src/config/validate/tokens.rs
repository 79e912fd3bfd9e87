//! Limited tokens of the admin API: what each is good for exists, and no two are the same.

use super::names::known;
use crate::admin::Auth;
use crate::config::Config;
use crate::config::diagnostic::{Finding, join};

pub(super) fn tokens(config: &Config, found: &mut Vec<Finding>) {
    let admin = &config.admin;
    for (index, token) in admin.tokens.iter().enumerate() {
        let path = join("admin.tokens", &token.name);
        if admin.auth == Auth::None {
            let message =
                "`auth` is \"none\": whoever has this token may do everything, as everybody may";
            let finding = Finding::new(path.clone(), message, "limits nobody");
            found.push(finding.other("admin.auth"));
        }
        if token.buckets.is_empty() {
            let finding = Finding::new(
                path.clone(),
                "the token is good for no bucket",
                "good for nothing",
            );
            found.push(finding.help("write `buckets = { NAME = \"write\" }`".to_owned()));
        }
        for bucket in token.buckets.keys() {
            let names = config.buckets.iter().map(|bucket| bucket.name.as_str());
            let path = join(&join(&path, "buckets"), bucket);
            known(path, "bucket", bucket, names, found);
        }
        let same = admin.tokens[..index]
            .iter()
            .find(|other| other.token == token.token);
        if let Some(same) = same {
            let other = join("admin.tokens", &same.name);
            let finding = Finding::new(
                join(&path, "token"),
                "two tokens are the same",
                "the same again",
            );
            found.push(finding.other(join(&other, "token")));
        }
    }
}
