//! Values: bytes, or an address or a typed record that was checked when it was written.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use super::TypedRecord;
use super::bucket::{VALUE_BYTES_MAX, ValueKind};
use socket::check_path;

mod socket;

pub(crate) use socket::UNIX_MARK;

/// A value of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Of a bucket of bytes.
    Bytes(Arc<[u8]>),
    /// Of a routing bucket.
    Target(Target),
    /// The same, with more than one address.
    Typed(Arc<TypedRecord>),
}

/// Where a routing entry points: a host, with or without a port, or a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// An IP address.
    Ip(IpAddr, Option<u16>),
    /// A host name, lower case, to be resolved when dialled.
    Name(Arc<str>, Option<u16>),
    /// The absolute path of a Unix socket.
    Unix(Arc<str>),
}

/// Why a value is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub String);

/// Longest host name, and longest label of one (RFC 1123).
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;
/// How much of a refused value an error shows.
const SHOWN_CHARS_MAX: usize = 64;

impl Value {
    /// A value of a bucket of this kind, from what was written.
    ///
    /// # Errors
    /// If it is too long, or is no address and the bucket holds those.
    pub fn parse(kind: ValueKind, bytes: &[u8]) -> Result<Self, ValueError> {
        if bytes.len() > VALUE_BYTES_MAX {
            return Err(ValueError(format!(
                "value of {} bytes is too long, expected at most {VALUE_BYTES_MAX}",
                bytes.len()
            )));
        }
        match kind {
            ValueKind::Bytes => Ok(Self::Bytes(bytes.into())),
            ValueKind::Endpoint => match std::str::from_utf8(bytes) {
                Ok(text) if TypedRecord::is_meant(text) => {
                    TypedRecord::parse(text).map(Self::Typed)
                }
                Ok(text) => Target::parse(text).map(Self::Target),
                Err(_) => Err(refused(&String::from_utf8_lossy(bytes), "it is not UTF-8")),
            },
        }
    }

    /// The value after adding `by`: the number, and as it is stored. What is not there counts as 0.
    ///
    /// # Errors
    /// If the bucket holds no numbers, the value is none, or the sum is beyond 64 bits.
    pub fn increment(
        kind: ValueKind,
        value: Option<&Self>,
        by: i64,
    ) -> Result<(i64, Self), ValueError> {
        let bytes = match (kind, value) {
            (ValueKind::Endpoint, _) | (_, Some(Self::Target(_) | Self::Typed(_))) => {
                return Err(ValueError(
                    "the bucket holds addresses, expected one of bytes to count in".into(),
                ));
            }
            (_, Some(Self::Bytes(bytes))) => &bytes[..],
            (_, None) => &b"0"[..],
        };
        let number = parse_number(bytes).ok_or_else(|| {
            ValueError(format!(
                "value {} cannot be counted up, expected a decimal number from {} to {}",
                shown(&String::from_utf8_lossy(bytes)),
                i64::MIN,
                i64::MAX
            ))
        })?;
        let sum = number.checked_add(by).ok_or_else(|| {
            ValueError(format!(
                "the sum of {number} and {by} is beyond 64 bits, expected one from {} to {}",
                i64::MIN,
                i64::MAX
            ))
        })?;
        Ok((sum, Self::Bytes(sum.to_string().into_bytes().into())))
    }

    /// The value as it is stored and sent: the bytes, or the address as text.
    pub fn to_bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Bytes(bytes) => Cow::Borrowed(bytes),
            Self::Target(target) => Cow::Owned(target.text().into_bytes()),
            Self::Typed(record) => Cow::Borrowed(record.text().as_bytes()),
        }
    }

    /// The same, taken.
    pub fn into_bytes(self) -> Box<[u8]> {
        match self {
            Self::Bytes(bytes) => bytes[..].into(),
            Self::Target(target) => target.text().into_bytes().into(),
            Self::Typed(record) => record.text().as_bytes().into(),
        }
    }

    /// The value as text, unless it is bytes that are not UTF-8.
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
            Self::Target(target) => Some(Cow::Owned(target.text())),
            Self::Typed(record) => Some(Cow::Borrowed(record.text())),
        }
    }

    /// The address, of an entry that is one.
    pub fn target(&self) -> Option<&Target> {
        match self {
            Self::Bytes(_) | Self::Typed(_) => None,
            Self::Target(target) => Some(target),
        }
    }

    /// The length of [`Self::to_bytes`].
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Typed(record) => record.text().len(),
            // By far the most of them, where formatting costs more than all else that is counted.
            Self::Target(Target::Ip(IpAddr::V4(ip), port)) => {
                let digits = |number: u16| number.checked_ilog10().unwrap_or(0) as usize + 1;
                let octets: usize = ip.octets().into_iter().map(|o| digits(o.into())).sum();
                octets + 3 + port.map_or(0, |port| 1 + digits(port))
            }
            Self::Target(target) => {
                let mut length = Length(0);
                write!(length, "{target}").expect("counting does not fail");
                length.0
            }
        }
    }

    /// Whether it is no bytes at all.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Bytes(bytes) if bytes.is_empty())
    }
}

/// Counts what is written to it.
struct Length(usize);

impl Write for Length {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

impl Target {
    /// Parses an IP address or a host name, either with a port or without: `127.0.0.2`, `127.0.0.2:80`, `::1`,
    /// `[::1]:80`, `agent-1.internal:8080`; or the path of a Unix socket: `unix:/run/agent.sock`.
    ///
    /// # Errors
    /// For anything else; the message shows the text and says what was expected.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let refuse = |reason: &str| refused(text, reason);
        let port_of = |port: &str| {
            parse_port(port).ok_or_else(|| refuse("the port is not a number from 1 to 65535"))
        };
        if let Some(path) = text.strip_prefix(UNIX_MARK) {
            check_path(path).map_err(refuse)?;
            return Ok(Self::Unix(path.into()));
        }
        if let Ok(ip) = text.parse::<Ipv6Addr>() {
            return Ok(Self::Ip(ip.into(), None));
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (ip, rest) = rest
                .split_once(']')
                .ok_or_else(|| refuse("the bracket is not closed"))?;
            let ip = ip
                .parse::<Ipv6Addr>()
                .map_err(|_| refuse("there is no IPv6 address in the brackets"))?;
            let port = match rest.strip_prefix(':') {
                Some(port) => Some(port_of(port)?),
                None if rest.is_empty() => None,
                None => return Err(refuse("only a port may follow the brackets")),
            };
            return Ok(Self::Ip(ip.into(), port));
        }
        let (host, port) = match text.split_once(':') {
            Some((_, rest)) if rest.starts_with("//") => return Err(refuse("it has a scheme")),
            Some((_, port)) if port.contains(':') => {
                return Err(refuse("it has more than one colon and is no IPv6 address"));
            }
            Some((host, port)) => (host, Some(port_of(port)?)),
            None => (text, None),
        };
        if let Ok(ip) = host.parse::<Ipv4Addr>() {
            return Ok(Self::Ip(ip.into(), port));
        }
        check_name(host).map_err(refuse)?;
        Ok(Self::Name(host.to_ascii_lowercase().into(), port))
    }

    /// The port, if it names one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Ip(_, port) | Self::Name(_, port) => *port,
            Self::Unix(_) => None,
        }
    }

    /// The same without its port, and the port.
    pub fn split_port(&self) -> (Self, Option<u16>) {
        match self {
            Self::Ip(ip, port) => (Self::Ip(*ip, None), *port),
            Self::Name(name, port) => (Self::Name(name.clone(), None), *port),
            Self::Unix(_) => (self.clone(), None),
        }
    }

    /// Whether a port has to be said beside it.
    pub fn needs_port(&self) -> bool {
        self.port().is_none() && !matches!(self, Self::Unix(_))
    }
}

/// A port in decimal digits, 1 to 65535: no sign, no space, no leading zero, which others take for octal.
pub(crate) fn parse_port(text: &str) -> Option<u16> {
    let digits = text.as_bytes();
    if digits.is_empty() || digits.len() > 5 || digits[0] == b'0' {
        return None;
    }
    let mut port = 0u32;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        port = port * 10 + u32::from(digit - b'0');
    }
    u16::try_from(port).ok()
}

/// A number as one is written: no sign but a minus, no space, no leading zero. So adding 0 changes nothing.
fn parse_number(bytes: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let number: i64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("the host is empty");
    }
    if name.len() > NAME_BYTES_MAX {
        return Err("the host name is longer than 253 bytes");
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err("the host name has an empty label");
        }
        if label.len() > LABEL_BYTES_MAX {
            return Err("the host name has a label longer than 63 bytes");
        }
        if !label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            return Err(
                "a host name has only letters, digits, hyphens and dots, and nothing may surround it",
            );
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("a label of the host name begins or ends with a hyphen");
        }
    }
    let last = name.rsplit('.').next().unwrap_or(name);
    let hexadecimal = last
        .strip_prefix("0x")
        .or_else(|| last.strip_prefix("0X"))
        .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    // Resolvers read such a name as an address of their own liking.
    if hexadecimal || last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("it looks like an IPv4 address but is not one");
    }
    Ok(())
}

fn refused(text: &str, reason: &str) -> ValueError {
    ValueError(format!(
        "{} is not an address: {reason}; expected an IP address or a host name, with or without a port, \
         such as 127.0.0.2, [::1]:80 or agent-1.internal:8080, or a Unix socket such as unix:/run/agent.sock",
        shown(text)
    ))
}

/// Text quoted, escaped and shortened for a message.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
    }
}

impl FromStr for Target {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text)
    }
}

impl Target {
    /// Longest text of an IPv4 address and a port.
    const TEXT_BYTES: usize = "255.255.255.255:65535".len();

    /// As [`fmt::Display`] has it.
    fn text(&self) -> String {
        let mut text = String::with_capacity(Self::TEXT_BYTES);
        // What it is written to takes everything.
        let _ = self.write(&mut text);
        text
    }

    /// Writes it as text; IPv4 addresses, most of many a map, digit by digit: formatted they take ten times as long.
    fn write(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let port = match self {
            Self::Ip(IpAddr::V4(ip), port) => {
                let [first, rest @ ..] = ip.octets();
                out.write_str(itoa::Buffer::new().format(first))?;
                for octet in rest {
                    out.write_char('.')?;
                    out.write_str(itoa::Buffer::new().format(octet))?;
                }
                *port
            }
            Self::Ip(IpAddr::V6(ip), None) => return write!(out, "{ip}"),
            Self::Ip(IpAddr::V6(ip), port) => {
                write!(out, "[{ip}]")?;
                *port
            }
            Self::Name(name, port) => {
                out.write_str(name)?;
                *port
            }
            Self::Unix(path) => {
                out.write_str(UNIX_MARK)?;
                return out.write_str(path);
            }
        };
        let Some(port) = port else { return Ok(()) };
        out.write_char(':')?;
        out.write_str(itoa::Buffer::new().format(port))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f)
    }
}

#[cfg(test)]
mod tests;
