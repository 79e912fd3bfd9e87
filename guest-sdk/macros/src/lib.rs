//! The `#[throwbar::router]` attribute.

use proc_macro::TokenStream;
use quote::{ToTokens, quote};
use syn::{FnArg, Item, ItemFn, ItemImpl, Pat, Result};

mod scan;

/// Makes a function, or an `impl Router`, the plugin of its crate.
///
/// On a function from `&Request` to anything that is `Into<Decision>`, it subscribes to what the body reads of its
/// parameter through literals: `.header("x-id")`, `.path()`, `.query()`, … are passed in with every request;
/// `.lookup("bucket", "x-id")`, `.lookup_port("bucket", "x-id", "x-port")` have the host keep those header fields at
/// hand; `.find("bucket", key)` opens the bucket. What it cannot see, such as a field that a function called from here
/// reads, is asked of the host at that moment. For tests it makes a type of the function's name that is the router:
/// `Host::new().start::<route>()`.
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
    if !arguments.is_empty() {
        return Err(syn::Error::new_spanned(
            arguments,
            "#[throwbar::router] takes no arguments",
        ));
    }
    match syn::parse(item)? {
        Item::Fn(function) => router_of_function(&function),
        Item::Impl(implementation) => Ok(router_of_impl(&implementation)),
        other => Err(syn::Error::new_spanned(
            other,
            "expected a function from `&Request` to a decision, or an `impl Router`",
        )),
    }
}

fn router_of_impl(implementation: &ItemImpl) -> proc_macro2::TokenStream {
    let router = &implementation.self_ty;
    quote! {
        #implementation
        ::throwbar::export!(#router);
    }
}

fn router_of_function(function: &ItemFn) -> Result<proc_macro2::TokenStream> {
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

        ::throwbar::export!(#name);
    })
}
