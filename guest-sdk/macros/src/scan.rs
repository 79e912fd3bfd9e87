//! Reads off the body of a router what it will ask of its request.

use proc_macro2::{Delimiter, Group, Ident, TokenStream, TokenTree};
use quote::quote;
use syn::{LitStr, Result};

/// Most fields, and most slots, that the contract lets a plugin subscribe to.
const FIELDS_MAX: usize = 16;

/// Calls on `setup`, one for each thing that `body` reads of `request` through literals. Works on tokens, so that it
/// sees into macros too; fields over the limit are left to the slower door.
pub(crate) fn subscriptions(request: &Ident, body: TokenStream) -> Result<Vec<TokenStream>> {
    let mut seen = Seen::default();
    seen.walk(request, body)?;
    seen.fields.truncate(FIELDS_MAX);
    seen.slots.truncate(FIELDS_MAX);
    let fields = seen.fields.iter().map(|field| match field {
        Field::Part(variant) => {
            let variant = Ident::new(variant, proc_macro2::Span::call_site());
            quote! { setup.field(::throwbar::Field::#variant); }
        }
        Field::Header(name) => quote! { setup.header(#name); },
    });
    let slots = seen.slots.iter();
    let slots = slots.map(|name| quote! { setup.slot_header(#name); });
    let buckets = seen.buckets.iter();
    let buckets = buckets.map(|name| quote! { setup.bucket(#name); });
    Ok(fields.chain(slots).chain(buckets).collect())
}

#[derive(PartialEq)]
enum Field {
    Part(&'static str),
    Header(String),
}

#[derive(Default)]
struct Seen {
    fields: Vec<Field>,
    slots: Vec<String>,
    buckets: Vec<String>,
}

impl Seen {
    fn walk(&mut self, request: &Ident, body: TokenStream) -> Result<()> {
        let tokens: Vec<TokenTree> = body.into_iter().collect();
        for (index, token) in tokens.iter().enumerate() {
            match (token, tokens.get(index + 1..index + 4)) {
                (
                    TokenTree::Ident(receiver),
                    Some(
                        [
                            TokenTree::Punct(dot),
                            TokenTree::Ident(method),
                            TokenTree::Group(arguments),
                        ],
                    ),
                ) if receiver == request
                    && dot.as_char() == '.'
                    && arguments.delimiter() == Delimiter::Parenthesis =>
                {
                    self.call(&method.to_string(), arguments)?;
                }
                (TokenTree::Group(group), _) => self.walk(request, group.stream())?,
                _ => {}
            }
        }
        Ok(())
    }

    fn call(&mut self, method: &str, arguments: &Group) -> Result<()> {
        let part = match method {
            "method" => "Method",
            "scheme" => "Scheme",
            "authority" => "Authority",
            "path" => "Path",
            "query" => "Query",
            "client_ip" => "ClientIp",
            "is_websocket" => "Upgrade",
            _ => "",
        };
        let literals = literals(arguments);
        match (method, &literals[..]) {
            _ if !part.is_empty() => add(&mut self.fields, Field::Part(part)),
            ("header", [Some(name), ..]) => {
                add(&mut self.fields, Field::Header(header_name(name)?));
            }
            ("lookup" | "lookup_port", [bucket, headers @ ..]) => {
                if let Some(bucket) = bucket {
                    add(&mut self.buckets, bucket.value());
                }
                for header in headers.iter().flatten() {
                    add(&mut self.slots, header_name(header)?);
                }
            }
            ("find" | "find_port", [Some(bucket), ..]) => add(&mut self.buckets, bucket.value()),
            _ => {}
        }
        Ok(())
    }
}

/// The arguments of a call: those that are a string literal and nothing else, and none for the others.
fn literals(arguments: &Group) -> Vec<Option<LitStr>> {
    let tokens: Vec<TokenTree> = arguments.stream().into_iter().collect();
    tokens
        .split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ','))
        .filter(|argument| !argument.is_empty())
        .map(|argument| match argument {
            [TokenTree::Literal(literal)] => {
                syn::parse2(TokenTree::Literal(literal.clone()).into()).ok()
            }
            _ => None,
        })
        .collect()
}

/// The name in lower case.
///
/// # Errors
/// If no header field can have it: better now than when the plugin is pushed.
fn header_name(literal: &LitStr) -> Result<String> {
    let name = literal.value();
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(syn::Error::new_spanned(
            literal,
            "expected the name of a header field, such as \"x-id\"",
        ));
    }
    Ok(name.to_ascii_lowercase())
}

fn add<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(body: &str) -> Vec<String> {
        let request = Ident::new("req", proc_macro2::Span::call_site());
        let subscriptions = subscriptions(&request, body.parse().unwrap()).unwrap();
        let text = |tokens: TokenStream| tokens.to_string().replace(' ', "");
        subscriptions.into_iter().map(text).collect()
    }

    #[test]
    fn literals_are_subscribed_once_each_in_order_of_kind() {
        let body = r#"
            let id = req.lookup("upstreams", "X-ID");
            if req.path().starts_with("/a") && req . header ( "Host" ) . is_some() { req.header("host"); }
            req.lookup_port("upstreams", "x-id", "x-port").or(req.find("spare", &key))
        "#;
        assert_eq!(
            scanned(body),
            [
                "setup.field(::throwbar::Field::Path);",
                "setup.header(\"host\");",
                "setup.slot_header(\"x-id\");",
                "setup.slot_header(\"x-port\");",
                "setup.bucket(\"upstreams\");",
                "setup.bucket(\"spare\");",
            ]
        );
    }

    #[test]
    fn it_sees_into_macros_and_closures() {
        let body =
            r#"format!("{}", req.query().unwrap_or("-")); (0..2).map(|_| { req.header("a") })"#;
        assert_eq!(scanned(body).len(), 2);
    }

    #[test]
    fn other_receivers_and_computed_names_are_left_alone() {
        let body =
            r#"other.header("a"); req.header(name); req.header(&["a"].concat()); entry.path();"#;
        assert_eq!(scanned(body), [""; 0]);
    }

    #[test]
    fn a_seventeenth_header_is_left_to_the_slower_door() {
        let body: String = (0..17).map(|n| format!("req.header(\"h{n}\");")).collect();
        assert_eq!(scanned(&body).len(), 16);
    }

    #[test]
    fn a_name_that_no_header_can_have_is_refused() {
        let request = Ident::new("req", proc_macro2::Span::call_site());
        let body = r#"req.header("x id")"#.parse().unwrap();
        assert!(subscriptions(&request, body).is_err());
    }
}
