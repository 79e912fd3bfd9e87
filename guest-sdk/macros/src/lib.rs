//! The `#[throwbar::router]` attribute.

use proc_macro::TokenStream;
use quote::{ToTokens, quote};
use syn::parse::{ParseStream, Parser};
use syn::{FnArg, Ident, Item, ItemFn, ItemImpl, Pat, Path, Result, Token, Type};

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
/// With `streams = TYPE`, that `Session` is made for each WebSocket the router forwards. With `view = TYPE`, each instance
/// keeps that `View` of its buckets, and is told what has changed in them before a call that sees it.
///
/// # Migration
///
/// With `migrate = FUNCTION`, a `fn(Option<&str>) -> Result<(), String>` is called once before this version takes over from
/// another, to bring the data in the plugin's buckets into its form. It gets the digest of the version that they are of, none
/// at the first activation; it reads and writes by `kv`. Its writes are applied all or none, in the moment in which this
/// version takes over. After an error or a panic nothing is written, and the version is not activated.
///
/// It may run again from the start, if others write meanwhile, and after a rollback it meets data of a newer version. So it
/// best looks at the data themselves: `throwbar::kv::each` shows one.
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
    let extras = extras(arguments)?;
    match syn::parse(item)? {
        Item::Fn(function) => router_of_function(&function, &extras),
        Item::Impl(implementation) => Ok(router_of_impl(&implementation, &extras)),
        other => Err(syn::Error::new_spanned(
            other,
            "expected a function from `&Request` to a decision, or an `impl Router`",
        )),
    }
}

/// What a plugin has beside its routing.
#[derive(Default)]
struct Extras {
    session: Option<Type>,
    migrate: Option<Path>,
    view: Option<Type>,
}

/// `streams = TYPE`, `migrate = FUNCTION` and `view = TYPE`, in any order, each at most once.
fn extras(arguments: proc_macro2::TokenStream) -> Result<Extras> {
    let parser = |input: ParseStream<'_>| {
        let mut extras = Extras::default();
        while !input.is_empty() {
            let name: Ident = input.parse()?;
            input.parse::<Token![=]>()?;
            let again = match name.to_string().as_str() {
                "streams" => extras.session.replace(input.parse()?).is_some(),
                "migrate" => extras.migrate.replace(input.parse()?).is_some(),
                "view" => extras.view.replace(input.parse()?).is_some(),
                _ => {
                    return Err(syn::Error::new_spanned(
                        name,
                        "expected `streams = TYPE`, TYPE being a `Session`, `migrate = FUNCTION`, or `view = TYPE`, TYPE being a `View`",
                    ));
                }
            };
            if again {
                return Err(syn::Error::new_spanned(name, "given already"));
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(extras)
    };
    parser.parse2(arguments)
}

/// The line that makes a router, with what it has beside, the plugin of the crate.
fn export(router: &impl ToTokens, extras: &Extras) -> proc_macro2::TokenStream {
    let session = extras.session.iter();
    let migrate = extras.migrate.iter();
    let view = extras.view.iter();
    quote! {
        ::throwbar::export!(#router #(, streams = #session)* #(, migrate = #migrate)* #(, view = #view)*);
    }
}

fn router_of_impl(implementation: &ItemImpl, extras: &Extras) -> proc_macro2::TokenStream {
    let export = export(&implementation.self_ty, extras);
    quote! {
        #implementation
        #export
    }
}

fn router_of_function(function: &ItemFn, extras: &Extras) -> Result<proc_macro2::TokenStream> {
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
    let export = export(name, extras);
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
