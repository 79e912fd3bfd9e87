//! The plugins that are part of the binary; `build.rs` builds them.

/// Their names.
pub const NAMES: [&str; 7] = [
    "by-header",
    "canary",
    "chat-filter",
    "maintenance",
    "path-prefix",
    "prefix-rules",
    "self-register",
];

/// The component of a built-in plugin.
pub fn component(name: &str) -> Option<&'static [u8]> {
    macro_rules! bytes {
        ($name:literal) => {
            include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".wasm"))
        };
    }
    Some(match name {
        "by-header" => bytes!("by-header"),
        "canary" => bytes!("canary"),
        "chat-filter" => bytes!("chat-filter"),
        "maintenance" => bytes!("maintenance"),
        "path-prefix" => bytes!("path-prefix"),
        "prefix-rules" => bytes!("prefix-rules"),
        "self-register" => bytes!("self-register"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{NAMES, component};

    #[test]
    fn every_name_has_a_component_and_no_other_has() {
        for name in NAMES {
            let bytes = component(name).expect(name);
            assert_eq!(bytes[..8], *b"\0asm\x0d\0\x01\0", "{name}: not a component");
        }
        assert!(component("by_header").is_none());
    }
}
