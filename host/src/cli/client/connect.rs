//! Which proxy a command speaks to: its options, the environment, the defaults.

use super::Client;
use super::token::{Token, find_token, header_of};
use crate::admin::Address;
use crate::cli::number;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Where a proxy started without a config listens for us.
pub(crate) const ADMIN_DEFAULT: &str = "127.0.0.1:2019";
/// The data directory of `serve` without a config.
pub(crate) const DATA_DEFAULT: &str = "throwbar-data";

/// Which proxy a command speaks to.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Admin API")]
pub(crate) struct Connect {
    /// Where the admin API is: IP:PORT or unix:PATH [default: $THROWBAR_ADMIN, else 127.0.0.1:2019]
    #[arg(long, global = true, value_name = "ADDR", value_parser = parse_address)]
    admin: Option<Address>,
    /// The proxy's data directory, where its token is [default: ./throwbar-data, else ./data]
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A file with the token, in place of the data directory's; $THROWBAR_TOKEN holds the token itself
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "data")]
    token_file: Option<PathBuf>,
}

impl Connect {
    /// The client these options and the environment describe.
    ///
    /// # Errors
    /// If an address or a token file that was named cannot be used.
    pub(crate) fn client(self) -> anyhow::Result<Client> {
        let address = match (self.admin, variable("THROWBAR_ADMIN")?) {
            (Some(address), _) => address,
            (None, Some(text)) => parse_address(&text)
                .map_err(|e| anyhow::anyhow!("THROWBAR_ADMIN: {text:?}: {e}"))?,
            (None, None) => parse_address(ADMIN_DEFAULT).expect("the default is an address"),
        };
        let token = match variable("THROWBAR_TOKEN")? {
            Some(token) if self.token_file.is_none() && self.data.is_none() => Token {
                value: Some(header_of(token.trim(), "THROWBAR_TOKEN")?),
                places: vec!["the variable THROWBAR_TOKEN".to_owned()],
            },
            _ => find_token(self.token_file.as_deref(), self.data.as_deref())?,
        };
        Ok(Client { address, token })
    }
}

fn variable(name: &str) -> anyhow::Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => anyhow::bail!("{name}: is not UTF-8"),
    }
}

/// Reads `IP:PORT`, `:PORT`, `localhost:PORT`, `unix:PATH` or `http://IP:PORT`.
pub(crate) fn parse_address(text: &str) -> Result<Address, String> {
    const EXPECTED: &str = "expected IP:PORT such as 127.0.0.1:2019, or unix:PATH";
    if let Some(path) = text.strip_prefix("unix:") {
        return match path {
            "" => Err(format!("the path is missing: {EXPECTED}")),
            path => Ok(Address::Unix(path.into())),
        };
    }
    let text = text.strip_prefix("http://").unwrap_or(text);
    let text = text.strip_suffix('/').unwrap_or(text);
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Address::Tcp(address));
    }
    let (host, port) = text.rsplit_once(':').ok_or(EXPECTED)?;
    let port = number::port(port, EXPECTED)?;
    match host {
        "" | "localhost" => Ok(Address::Tcp((Ipv4Addr::LOCALHOST, port).into())),
        _ => Err(EXPECTED.to_owned()),
    }
}

/// An address as it is given to `--admin`.
pub(crate) fn show_address(address: &Address) -> String {
    match address {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(path) => format!("unix:{}", path.display()),
    }
}
