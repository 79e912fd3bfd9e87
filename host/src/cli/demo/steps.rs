//! The steps of the demonstration, one claim after the other.

use super::screen::Screen;
use super::traffic::{Requests, Traffic};
use super::upstreams::{NAMES, Upstreams};
use super::websocket::WebSocket;
use super::{ADMIN_PREFERRED, NEXT_PLUGIN};
use crate::app::App;
use crate::cli::client::{Client, parse_address, show_address};
use crate::cli::output::{self, span};
use crate::cli::plugin::{Deployed, push, rollback};
use crate::cli::serve::{BUCKET, PLUGIN};
use crate::plugin::builtin;
use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// Everything the steps need.
pub(super) struct Demo {
    proxy: SocketAddr,
    admin: Client,
    /// Options by which a command of the user reaches this proxy.
    options: String,
    upstreams: [SocketAddr; 2],
}

/// A stream, as far as claims are made of it.
#[derive(Debug, Clone, Deserialize)]
struct Stream {
    id: u64,
    endpoint: String,
    version: Option<String>,
}

impl Stream {
    fn version(&self) -> &str {
        output::short(self.version.as_deref().unwrap_or("no version"))
    }
}

impl Demo {
    /// Of a proxy that was just started.
    ///
    /// # Errors
    /// If it has no listener, or no token can be read.
    pub(super) fn of(app: &App, data: &Path, upstreams: &Upstreams) -> anyhow::Result<Self> {
        let (_, proxy) = app
            .bound()
            .into_iter()
            .next()
            .context("the proxy has no listener")?;
        let address = app.admin_address().clone();
        let shown = show_address(&address);
        let elsewhere = parse_address(ADMIN_PREFERRED).as_ref() != Ok(&address);
        let options = format!(
            "{} --data {}",
            if elsewhere {
                format!(" --admin {shown}")
            } else {
                String::new()
            },
            data.display()
        );
        Ok(Self {
            proxy,
            admin: Client::new(address, app.token_path())?,
            options,
            upstreams: upstreams.addresses,
        })
    }

    /// All steps.
    ///
    /// # Errors
    /// The first claim that does not hold.
    pub(super) async fn show(&self, screen: &mut Screen) -> anyhow::Result<()> {
        let [a, b] = self.upstreams;
        screen.title(concat!(
            "Throwbar ",
            env!("CARGO_PKG_VERSION"),
            ", on this machine only"
        ))?;
        screen.note(format_args!("proxy      http://{}", self.proxy))?;
        screen.note(format_args!(
            "upstreams  {} at {a}, {} at {b}",
            NAMES[0], NAMES[1]
        ))?;
        screen.note(format_args!(
            "map        id1 -> {}, id2 -> {}",
            a.ip(),
            b.ip()
        ))?;

        let mut requests = self.map_decides(screen).await?;
        let beside = Traffic::requests(Requests::open(self.proxy).await?, self.fields("id2", b));
        let (socket, stream) = self.websocket_opens(screen).await?;
        self.map_changes(screen, &mut requests, &socket, &stream)
            .await?;
        self.code_is_replaced(screen, &mut requests, &socket, &stream)
            .await?;
        self.code_is_put_back(screen, &mut requests, &socket, &stream)
            .await?;

        screen.title("Result")?;
        let (echoes, others) = (socket.tally(), beside.tally());
        screen.claim(
            echoes.failure.is_none(),
            format_args!(
                "the WebSocket was open through all of it: {} echoed",
                output::counted(echoes.done, "message")
            ),
            outcome(&echoes.failure, || {
                format!("longest {}", time(echoes.longest))
            }),
        )?;
        screen.claim(
            others.failure.is_none() && others.done > 0,
            format_args!(
                "{} beside it, none failed",
                output::counted(others.done, "request")
            ),
            outcome(&others.failure, || {
                format!("longest {}", time(others.longest))
            }),
        )?;
        let claims = screen.claims();
        screen.note(format_args!("all {claims} claims held"))
    }

    /// Step 1: a header field and the map decide.
    async fn map_decides(&self, screen: &mut Screen) -> anyhow::Result<Requests> {
        let [a, b] = self.upstreams;
        screen.title("1  The header X-ID picks the upstream, by the map")?;
        screen.command(&self.curl("id1", a))?;
        let mut requests = Requests::open(self.proxy).await?;
        self.answered_by(screen, &mut requests, "id1", 0, a).await?;
        self.answered_by(screen, &mut requests, "id2", 1, b).await?;
        let unknown = requests.get(&self.fields("id9", a)).await?;
        screen.claim(
            unknown.status == 404 && unknown.body.contains("Invalid request"),
            "id9 is not in the map and is refused",
            format_args!("{} {}", unknown.status.as_u16(), unknown.body.trim()),
        )?;
        Ok(requests)
    }

    /// Step 2: a stream that has to outlive everything that follows.
    async fn websocket_opens(&self, screen: &mut Screen) -> anyhow::Result<(Traffic, Stream)> {
        let [a, _] = self.upstreams;
        screen.title("2  A WebSocket is opened for id1, and echoes five times a second")?;
        let socket = Traffic::echoes(WebSocket::open(self.proxy, &self.fields("id1", a)).await?);
        let tally = socket.goes_on(1).await;
        screen.claim(
            tally.failure.is_none(),
            "it echoes",
            outcome(&tally.failure, || {
                format!("longest {}", time(tally.longest))
            }),
        )?;
        let streams = self.streams().await?;
        let [stream] = &streams[..] else {
            anyhow::bail!(
                "expected one open stream, the proxy lists {}",
                streams.len()
            );
        };
        screen.claim(
            stream.endpoint == a.to_string() && stream.version.is_some(),
            format_args!(
                "the proxy lists it: to {}, accepted by version {}",
                NAMES[0],
                stream.version()
            ),
            &stream.endpoint,
        )?;
        Ok((socket, stream.clone()))
    }

    /// Step 3: routing data is data.
    async fn map_changes(
        &self,
        screen: &mut Screen,
        requests: &mut Requests,
        socket: &Traffic,
        stream: &Stream,
    ) -> anyhow::Result<()> {
        let [a, b] = self.upstreams;
        screen.title("3  The map changes: id1 moves to the other upstream, id3 is new")?;
        screen.same_as(&format!("kv set {BUCKET} id1={} id3={}", b.ip(), a.ip()))?;
        let started = Instant::now();
        let change = json!({ "set": { "id1": b.ip().to_string(), "id3": a.ip().to_string() } });
        let done: Value = self
            .admin
            .post_json(&format!("/v1/kv/{BUCKET}/batch"), &change)
            .await?
            .json()?;
        let took = started.elapsed();
        screen.claim(
            done["created"] == 1 && done["updated"] == 1,
            format_args!(
                "one batch, on disk and in force: revision {}",
                done["revision"]
            ),
            time(took),
        )?;
        self.answered_by(screen, requests, "id1", 1, b).await?;
        self.answered_by(screen, requests, "id3", 0, a).await?;
        self.stays(screen, socket, stream).await
    }

    /// Step 4: routing logic is replaceable code.
    async fn code_is_replaced(
        &self,
        screen: &mut Screen,
        requests: &mut Requests,
        socket: &Traffic,
        stream: &Stream,
    ) -> anyhow::Result<()> {
        let [a, b] = self.upstreams;
        screen.title("4  The routing code is replaced while all this runs")?;
        screen.same_as(&format!("plugin push {PLUGIN} {NEXT_PLUGIN}.wasm"))?;
        let component = builtin::component(NEXT_PLUGIN)
            .with_context(|| format!("no built-in plugin {NEXT_PLUGIN:?}"))?;
        let answer = push(&self.admin, PLUGIN, component.to_vec(), false).await?;
        let done = Deployed::deserialize(&answer)?;
        let before = done.previous.as_deref().unwrap_or("none");
        screen.claim(
            done.outcome == "swapped" && before != done.digest,
            format_args!(
                "version {} -> {}",
                output::short(before),
                output::short(&done.digest)
            ),
            format_args!(
                "compiled in {}, switched in {}",
                span((done.compile_ms.max(0.0) * 1e6) as u64),
                span((done.publish_us.max(0.0) * 1e3) as u64),
            ),
        )?;
        self.answered_by(screen, requests, "id1", 1, b).await?;
        self.answered_by(screen, requests, "id3", 0, a).await?;
        self.stays(screen, socket, stream).await
    }

    /// Step 5: and back.
    async fn code_is_put_back(
        &self,
        screen: &mut Screen,
        requests: &mut Requests,
        socket: &Traffic,
        stream: &Stream,
    ) -> anyhow::Result<()> {
        let [_, b] = self.upstreams;
        screen.title("5  The version before is put back")?;
        screen.same_as(&format!("plugin rollback {PLUGIN}"))?;
        let started = Instant::now();
        let answer = rollback(&self.admin, PLUGIN, false, false).await?;
        let took = started.elapsed();
        let done = Deployed::deserialize(&answer)?;
        let before = done.previous.as_deref().unwrap_or("none");
        screen.claim(
            Some(&done.digest) == stream.version.as_ref(),
            format_args!(
                "version {} -> {}",
                output::short(before),
                output::short(&done.digest)
            ),
            format_args!("{} in all", time(took)),
        )?;
        self.answered_by(screen, requests, "id1", 1, b).await?;
        self.stays(screen, socket, stream).await
    }

    /// A request for this id is answered by this upstream.
    async fn answered_by(
        &self,
        screen: &mut Screen,
        requests: &mut Requests,
        id: &str,
        upstream: usize,
        address: SocketAddr,
    ) -> anyhow::Result<()> {
        let answer = requests.get(&self.fields(id, address)).await?;
        let holds = answer.status == 200 && answer.body.contains(NAMES[upstream]);
        let claim = format!("a request for {id} is answered by {}", NAMES[upstream]);
        if holds {
            screen.claim(true, claim, time(answer.took))
        } else {
            let body: String = answer.body.chars().take(200).collect();
            screen.claim(false, claim, format_args!("{} {body:?}", answer.status))
        }
    }

    /// The WebSocket echoes on, to the same endpoint, with the version that accepted it.
    async fn stays(
        &self,
        screen: &mut Screen,
        socket: &Traffic,
        stream: &Stream,
    ) -> anyhow::Result<()> {
        let tally = socket.goes_on(1).await;
        screen.claim(
            tally.failure.is_none(),
            "the WebSocket is open, and echoes",
            outcome(&tally.failure, || {
                format!("{} so far", output::counted(tally.done, "message"))
            }),
        )?;
        let streams = self.streams().await?;
        let now = streams.iter().find(|s| s.id == stream.id);
        screen.claim(
            now.is_some_and(|now| now.endpoint == stream.endpoint && now.version == stream.version),
            format_args!(
                "it is with {} and version {} still",
                NAMES[0],
                stream.version()
            ),
            match now {
                Some(now) => now.endpoint.clone(),
                None => "the proxy does not list it".to_owned(),
            },
        )
    }

    async fn streams(&self) -> anyhow::Result<Vec<Stream>> {
        let answer: Value = self.admin.get("/v1/streams").await?.json()?;
        crate::cli::kv::listed(&answer, "streams")
            .iter()
            .map(|stream| Stream::deserialize(stream).context("the list of streams"))
            .collect()
    }

    /// What to try now.
    ///
    /// # Errors
    /// If standard output is gone.
    pub(super) fn invite(&self, screen: &mut Screen) -> anyhow::Result<()> {
        let [a, b] = self.upstreams;
        screen.title("Your turn: it goes on serving until Ctrl-C")?;
        screen.command(&self.curl("id1", b))?;
        screen.command(&self.curl("id3", a))?;
        screen.command(&self.command(&format!("kv set {BUCKET} id1={}", a.ip())))?;
        screen.command(&self.command(&format!("kv ls {BUCKET}")))?;
        screen.command(&self.command("plugin ls"))?;
        screen.command(&self.command("streams ls"))
    }

    fn fields(&self, id: &str, address: SocketAddr) -> Vec<(&'static str, String)> {
        vec![
            ("x-id", id.to_owned()),
            ("x-port", address.port().to_string()),
        ]
    }

    fn curl(&self, id: &str, address: SocketAddr) -> String {
        let (port, proxy) = (address.port(), self.proxy);
        format!("curl -H 'X-ID: {id}' -H 'X-Port: {port}' http://{proxy}/")
    }

    fn command(&self, command: &str) -> String {
        format!("{} {command}{}", crate::cli::program(), self.options)
    }
}

fn outcome(failure: &Option<String>, well: impl FnOnce() -> String) -> String {
    failure.clone().unwrap_or_else(well)
}

fn time(took: Duration) -> String {
    span(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX))
}
