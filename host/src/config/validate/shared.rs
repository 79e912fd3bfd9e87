//! Buckets that proxies share need to know where.

use super::join;
use crate::config::Config;
use crate::config::diagnostic::Finding;
use crate::store::BackendKind;

pub(super) fn shared(config: &Config, found: &mut Vec<Finding>) {
    let engines = [
        (
            BackendKind::Etcd,
            config.store.etcd.is_some(),
            "endpoints = [\"127.0.0.1:2379\"]",
        ),
        (
            BackendKind::Redis,
            config.store.redis.is_some(),
            "server = \"127.0.0.1:6379\"",
        ),
    ];
    for (kind, is_there, example) in engines {
        let name = kind.as_str();
        let using = config
            .buckets
            .iter()
            .filter(|bucket| bucket.backend == kind);
        for bucket in using {
            let path = join(&join("buckets", &bucket.name), "backend");
            let what = |what| format!("bucket {:?} is in {name}, and {what}", bucket.name);
            if !kind.is_built() {
                let message = what("this throwbar was built without it");
                let help = format!("build it with the feature `{name}`");
                found.push(Finding::new(&path, message, "not in this build").help(help));
            } else if !is_there {
                let message = what("the config does not say where that is");
                let finding = Finding::new(&path, message, format!("there is no [store.{name}]"));
                // One that is there and could not be read is told by itself.
                let finding = finding.other(join("store", name));
                found.push(finding.help(format!("write `[store.{name}]` with `{example}`")));
            }
        }
    }
}
