//! What answers where an engine was expected, so that an error can say what to do.
//!
//! Asked only after a connection failed in a way that tells nothing by itself. What is found changes the words of an error,
//! never what is done about it.

use super::settings::parse_address;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest time for each of the two questions.
const TIMEOUT: Duration = Duration::from_secs(1);
/// So much of an answer is looked at.
const ANSWER_BYTES_MAX: usize = 4096;
/// The smallest greeting of TLS 1.2: whatever a server of TLS makes of it, it answers by a record of TLS.
const GREETING: [u8; 50] = {
    let mut bytes = [0; 50];
    // A record of 45 bytes: a greeting of 41, for 1.2; a time and random bytes that are 0, no session, one cipher, no
    // compression.
    let head = [0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3];
    let tail = [0, 0, 2, 0, 0x2f, 1, 0];
    let mut at = 0;
    while at < head.len() {
        bytes[at] = head[at];
        at += 1;
    }
    at = 0;
    while at < tail.len() {
        bytes[50 - tail.len() + at] = tail[at];
        at += 1;
    }
    bytes
};
/// A question that etcd answers, any other server of HTTP too, and Redis refuses in its own way.
const QUESTION: &[u8] = b"GET /version HTTP/1.0\r\n\r\n";

/// An engine, as it is expected at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    #[cfg(feature = "etcd")]
    Etcd,
    #[cfg(feature = "redis")]
    Redis,
}

/// What answers at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Tls,
    Etcd,
    Redis,
    Http,
}

/// What to do about a server that does not answer as expected, if its answers tell.
pub(super) async fn advice(
    address: &str,
    usual_port: Option<u16>,
    expected: Expected,
    with_tls: bool,
) -> Option<String> {
    let place = parse_address(address, usual_port).ok()?;
    let found = match tls_answers(&place).await {
        true => Found::Tls,
        false => of_answer(&asked(&place, QUESTION).await)?,
    };
    about(expected, with_tls, found)
}

fn about(expected: Expected, with_tls: bool, found: Found) -> Option<String> {
    let (name, table, own) = match expected {
        #[cfg(feature = "etcd")]
        Expected::Etcd => ("etcd", "store.etcd", Found::Etcd),
        #[cfg(feature = "redis")]
        Expected::Redis => ("Redis", "store.redis", Found::Redis),
    };
    Some(match found {
        // What is wrong with the certificates says so itself.
        Found::Tls if with_tls => return None,
        Found::Tls => format!("the server there speaks TLS: set `tls` in [{table}]"),
        found if found == own && with_tls => {
            format!("the server there speaks without TLS: leave out `tls` of [{table}]")
        }
        found if found == own => return None,
        Found::Http => {
            format!("an HTTP server answers there, which does not speak {name}")
        }
        Found::Etcd => format!("an etcd answers there, which does not speak {name}"),
        Found::Redis => format!("a Redis answers there, which does not speak {name}"),
    })
}

async fn tls_answers(place: &(String, u16)) -> bool {
    let answer = asked(place, &GREETING).await;
    // A handshake or an alert, of any version.
    matches!(answer[..], [0x15 | 0x16, 3, ..])
}

fn of_answer(answer: &[u8]) -> Option<Found> {
    let has = |part: &[u8]| memchr::memmem::find(answer, part).is_some();
    match answer {
        [b'H', b'T', b'T', b'P', b'/', ..] if has(b"\"etcdserver\"") => Some(Found::Etcd),
        [b'H', b'T', b'T', b'P', b'/', ..] => Some(Found::Http),
        [b'-' | b'+' | b'$' | b'_', ..] if has(b"\r\n") => Some(Found::Redis),
        _ => None,
    }
}

/// The beginning of what is answered, nothing if there is none.
async fn asked((host, port): &(String, u16), question: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let asking = async {
        let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.write_all(question).await?;
        let mut stream = stream.take(ANSWER_BYTES_MAX as u64);
        // A server that keeps the connection has said enough with its first words.
        while !is_enough(&answer) && stream.read_buf(&mut answer).await? > 0 {}
        std::io::Result::Ok(())
    };
    // What was read before it failed counts.
    let _ = tokio::time::timeout(TIMEOUT, asking).await;
    answer
}

fn is_enough(answer: &[u8]) -> bool {
    match answer {
        [0x15 | 0x16, 3, ..] => true,
        // Of what kind it is, is said in its body.
        [b'H', ..] => false,
        _ => memchr::memmem::find(answer, b"\r\n").is_some(),
    }
}

#[cfg(all(test, feature = "redis"))]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// A server that answers every connection with this.
    async fn answering(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound").to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut question = [0; 64];
                let _ = stream.read(&mut question).await;
                let _ = stream.write_all(answer).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn what_answers_is_told_from_what_was_expected() {
        const ETCD: &[u8] = b"HTTP/1.0 200 OK\r\n\r\n{\"etcdserver\":\"3.5.0\"}";
        const TLS: &[u8] = &[0x15, 3, 3, 0, 2, 2, 40];
        for (answer, with_tls, told) in [
            (
                &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
                false,
                Some("an HTTP server answers there"),
            ),
            (
                b"HTTP/1.1 400 Bad Request\r\n\r\n",
                true,
                Some("an HTTP server answers there"),
            ),
            (ETCD, false, Some("an etcd answers there")),
            (TLS, false, Some("speaks TLS: set `tls` in [store.redis]")),
            (TLS, true, None),
            (
                b"-ERR wrong number\r\n",
                true,
                Some("without TLS: leave out `tls` of [store.redis]"),
            ),
            (b"-ERR wrong number\r\n", false, None),
            (b"220 mail\r\n", false, None),
            (b"", true, None),
        ] {
            let address = answering(answer).await;
            let advice = advice(&address, None, Expected::Redis, with_tls).await;
            let as_told = match (&advice, told) {
                (Some(advice), Some(told)) => advice.contains(told),
                (advice, told) => advice.is_none() && told.is_none(),
            };
            assert!(as_told, "{answer:?} {with_tls}: {advice:?}");
        }
        assert_eq!(
            advice("127.0.0.1:1", None, Expected::Redis, false).await,
            None
        );
    }

    #[test]
    fn the_greeting_of_tls_is_as_long_as_it_says() {
        let length = |at: usize| usize::from(GREETING[at]) << 8 | usize::from(GREETING[at + 1]);
        assert_eq!(length(3), GREETING.len() - 5);
        assert_eq!(length(7), GREETING.len() - 9);
        // Version, random bytes, no session, one cipher, one way not to compress.
        assert_eq!(2 + 32 + 1 + 2 + 2 + 2, length(7));
    }
}
