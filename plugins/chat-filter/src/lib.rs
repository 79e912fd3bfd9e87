//! The `chat-filter` plugin: messages of clients with certain words do not reach the endpoint.

use throwbar::prelude::*;

/// Sends every request to one upstream.
///
/// | setting | default | |
/// |---|---|---|
/// | `upstream` | | where requests and WebSockets go |
/// | `deny` | none | words that no text of a client may hold, in any case, separated by commas |
/// | `notice` | `not sent` | what the client gets in place of an answer; empty: nothing |
/// | `strikes` | `3` | refused messages after which the WebSocket is closed with code 4000; 0: never |
#[derive(Debug)]
pub struct ChatFilter {
    upstream: String,
}

#[throwbar::router(streams = Chat)]
impl Router for ChatFilter {
    fn init(_: &mut Setup) -> Result<Self, String> {
        Chat::new(0)?;
        match config::get("upstream") {
            Some(upstream) => Ok(Self { upstream }),
            None => Err("setting \"upstream\" is missing".into()),
        }
    }

    fn route(&self, _: &Request) -> Decision {
        Target::upstream(self.upstream.as_str()).into()
    }
}

/// One WebSocket.
#[derive(Debug)]
pub struct Chat {
    deny: Vec<String>,
    notice: String,
    strikes_max: u32,
    strikes: u32,
}

impl Chat {
    fn new(strikes: u32) -> Result<Self, String> {
        let max = config::get_or("strikes", "3");
        let deny = config::get_or("deny", "").to_lowercase();
        let deny = deny
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty());
        Ok(Self {
            deny: deny.map(str::to_owned).collect(),
            notice: config::get_or("notice", "not sent"),
            strikes_max: max
                .parse()
                .map_err(|_| format!("setting \"strikes\" is {max:?}, expected a number"))?,
            strikes,
        })
    }

    fn is_denied(&self, text: &str) -> bool {
        if self.deny.is_empty() {
            return false;
        }
        let text = text.to_lowercase();
        self.deny.iter().any(|word| text.contains(word.as_str()))
    }
}

impl Session for Chat {
    /// The strikes of a session that was lost still count.
    fn open(_: &Request, saved: Option<&[u8]>) -> Result<Opening<Self>, Reply> {
        let strikes = saved.and_then(|saved| saved.try_into().ok());
        let strikes = strikes.map_or(0, u32::from_le_bytes);
        match Self::new(strikes) {
            Ok(chat) => Ok(Opening::new(chat)),
            Err(reason) => Err(Reply::text(500, reason)),
        }
    }

    fn on_message(&mut self, message: Message) -> Verdict {
        let denied = message.direction == Direction::Up
            && message.text().is_some_and(|text| self.is_denied(text));
        if !denied {
            return Verdict::Pass;
        }
        self.strikes += 1;
        session::save(&self.strikes.to_le_bytes());
        if self.strikes == self.strikes_max {
            return Verdict::close(4000, "too many messages were refused");
        }
        match self.notice.as_str() {
            "" => Verdict::Drop,
            notice => Verdict::send_back(notice),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use throwbar::testing::{Host, Stream, get};

    fn host() -> Host {
        let host = Host::new().config("upstream", "chat");
        host.config("deny", "Darn, heck").config("strikes", "2")
    }

    fn open(host: &Host) -> Stream<Chat> {
        let plugin = host.start::<ChatFilter>().unwrap();
        plugin.open(get("/").websocket()).unwrap()
    }

    #[test]
    fn everything_goes_to_the_upstream() {
        let plugin = host().start::<ChatFilter>().unwrap();
        let forwarded = plugin.route(get("/")).forwarded();
        assert_eq!(forwarded.to, Target::upstream("chat"));
    }

    #[test]
    fn words_are_kept_from_the_endpoint_only() {
        let mut chat = open(&host());
        assert_eq!(chat.text_up("hello"), Verdict::Pass);
        assert_eq!(chat.text_down("heck"), Verdict::Pass);
        assert_eq!(chat.text_up("oh HECK no"), Verdict::send_back("not sent"));
        let binary = Message {
            direction: Direction::Up,
            kind: Kind::Binary,
            bytes: b"heck".to_vec(),
        };
        assert_eq!(chat.message(binary), Verdict::Pass);
    }

    #[test]
    fn the_last_strike_closes_though_the_session_was_lost_between() {
        let mut chat = open(&host().config("notice", ""));
        assert_eq!(chat.text_up("darn"), Verdict::Drop);
        let mut chat = chat.rebuild().unwrap();
        let closed = Verdict::close(4000, "too many messages were refused");
        assert_eq!(chat.text_up("darn"), closed);
    }

    #[test]
    fn wrong_settings_are_named() {
        let host = Host::new();
        let error = host.start::<ChatFilter>().err().unwrap();
        assert_eq!(error, "setting \"upstream\" is missing");
        let host = host.config("upstream", "chat").config("strikes", "some");
        let error = host.start::<ChatFilter>().err().unwrap();
        assert!(error.contains("\"some\""), "{error}");
    }
}
