//! A client of server-sent events.

use super::{Admin, Raw, soon};
use serde_json::Value;
use tokio::io::AsyncReadExt;

/// An answer of events that goes on.
pub struct Events {
    raw: Raw,
    buffer: String,
    /// The id of the last event that had one.
    pub last_id: String,
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// What it is called.
    pub name: String,
    /// Its data.
    pub data: Value,
}

impl Events {
    /// Opens an answer of events; panics if that is refused.
    pub async fn open(admin: &Admin, path: &str, last_id: Option<&str>) -> Self {
        let mut raw = Raw::connect(admin.address()).await;
        let last_id = last_id.map(|id| format!("last-event-id: {id}\r\n"));
        // HTTP/1.0: the body is what comes until the end, in no chunks.
        let head = format!(
            "GET {path} HTTP/1.0\r\nhost: {}\r\n{}{}\r\n",
            admin.address(),
            admin.authorization(),
            last_id.unwrap_or_default()
        );
        raw.send(head).await;
        let mut events = Self {
            raw,
            buffer: String::new(),
            last_id: String::new(),
        };
        let head = events.block("\r\n\r\n").await.expect("a head");
        assert!(head.starts_with("HTTP/1.0 200 "), "{head}");
        assert!(head.contains("text/event-stream"), "{head}");
        // The first one only says where it begins.
        let first = events.block("\n\n").await.expect("an id");
        events.last_id = first.strip_prefix("id: ").expect("an id").to_owned();
        events
    }

    /// The next event with data; none at the end.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let block = self.block("\n\n").await?;
            let (mut name, mut data) = (String::new(), None);
            for line in block.lines() {
                match line.split_once(": ") {
                    Some(("id", id)) => self.last_id = id.to_owned(),
                    Some(("event", event)) => name = event.to_owned(),
                    Some(("data", text)) => data = serde_json::from_str(text).ok(),
                    _ => panic!("no field of an event: {line:?}"),
                }
            }
            if let Some(data) = data {
                return Some(Event { name, data });
            }
        }
    }

    /// Waits until the last id is another.
    pub async fn id_after(&mut self, last_id: &str) -> String {
        while self.last_id == last_id {
            let block = self.block("\n\n").await.expect("an id");
            self.last_id = block.strip_prefix("id: ").expect("an id alone").to_owned();
        }
        self.last_id.clone()
    }

    /// What comes up to an end mark; none if the answer ends.
    async fn block(&mut self, end: &str) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.find(end) {
                let rest = self.buffer.split_off(at + end.len());
                let mut block = std::mem::replace(&mut self.buffer, rest);
                block.truncate(at);
                return Some(block);
            }
            let mut chunk = [0; 4096];
            let read = soon("an event", self.raw.stream.read(&mut chunk)).await;
            match read {
                Ok(0) | Err(_) => return None,
                Ok(read) => self
                    .buffer
                    .push_str(&String::from_utf8_lossy(&chunk[..read])),
            }
        }
    }
}
