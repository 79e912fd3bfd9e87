//! The `#[throwbar::router]` attribute.

use proc_macro::TokenStream;
use quote::{ToTokens, quote};
use syn::parse::{ParseStream, Parser};
use syn::{FnArg, Ident, Item, ItemFn, ItemImpl, Pat, Result, Token, Type};

mod scan;

/// Makes a function, or an `impl Router`, the plugin of its crate.
///
/// On a function from `&Request` to anything that is `Into<Decision>`, it subscribes to what the body reads of its
/// parameter through literals: `.header("x-id")`, `.path()`, `.query()`, … are passed in with every request;
/// `.lookup("bucket", "x-id")`, `.lookup_port("bucket", "x-id", "x-port")` have the host keep those header fields at
/// hand; `.find("bucket", key)` opens the bucket. What it cannot see, such as a field that a function called from here
/// reads, is asked of the host at that moment. For tests it makes a type of the function's name that is the router:
/// `Host::new().start::<route>()`.
///
/// With `streams = TYPE`, that `Session` is made for each WebSocket the router forwards.
#[proc_macro_attribute]
pub fn router(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(arguments.into(), item)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

fn expand(
    arguments: proc_macro2::TokenStream,
    item: TokenStream,
) -> Result<proc_macro2::TokenStream> {
    let session = session(arguments)?;
    match syn::parse(item)? {
        Item::Fn(function) => router_of_function(&function, session.as_ref()),
        Item::Impl(implementation) => Ok(router_of_impl(&implementation, session.as_ref())),
        other => Err(syn::Error::new_spanned(
            other,
            "expected a function from `&Request` to a decision, or an `impl Router`",
        )),
    }
}

/// The type of `streams = TYPE`, if that is given.
fn session(arguments: proc_macro2::TokenStream) -> Result<Option<Type>> {
    if arguments.is_empty() {
        return Ok(None);
    }
    let parser = |input: ParseStream<'_>| {
        let name: Ident = input.parse()?;
        if name != "streams" {
            return Err(syn::Error::new_spanned(
                name,
                "expected `streams = TYPE`, TYPE being a `Session`",
            ));
        }
        input.parse::<Token![=]>()?;
        let session = input.parse()?;
        input.parse::<Option<Token![,]>>()?;
        Ok(Some(session))
    };
    parser.parse2(arguments)
}

/// The line that makes a router, with its sessions, the plugin of the crate.
fn export(router: &impl ToTokens, session: Option<&Type>) -> proc_macro2::TokenStream {
    match session {
        Some(session) => quote!(::throwbar::export!(#router, streams = #session);),
        None => quote!(::throwbar::export!(#router);),
    }
}

fn router_of_impl(implementation: &ItemImpl, session: Option<&Type>) -> proc_macro2::TokenStream {
    let export = export(&implementation.self_ty, session);
    quote! {
        #implementation
        #export
    }
}

fn router_of_function(
    function: &ItemFn,
    session: Option<&Type>,
) -> Result<proc_macro2::TokenStream> {
    let signature = &function.sig;
    if signature.asyncness.is_some() || !signature.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(
            signature,
            "a router is neither async nor generic",
        ));
    }
    let request = match signature.inputs.iter().collect::<Vec<_>>()[..] {
        [FnArg::Typed(argument)] => match &*argument.pat {
            Pat::Ident(name) => Some(name.ident.clone()),
            _ => None,
        },
        _ => {
            return Err(syn::Error::new_spanned(
                signature,
                "a router takes one argument, `&Request`",
            ));
        }
    };
    let subscriptions = match request {
        Some(request) => scan::subscriptions(&request, function.block.to_token_stream())?,
        None => Vec::new(),
    };
    let (name, visibility) = (&signature.ident, &function.vis);
    let export = export(name, session);
    Ok(quote! {
        #function

        #[doc(hidden)]
        #[allow(non_camel_case_types)]
        #visibility struct #name {}

        impl ::throwbar::Router for #name {
            fn init(setup: &mut ::throwbar::Setup) -> ::core::result::Result<Self, ::std::string::String> {
                #(#subscriptions)*
                Ok(Self {})
            }

            #[inline]
            fn route(&self, request: &::throwbar::Request<'_>) -> ::throwbar::Decision {
                ::core::convert::Into::into(#name(request))
            }
        }

        #export
    })
}
