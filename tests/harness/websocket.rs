//! WebSockets by a real library, both ends.

use super::soon;
use super::upstream::TestUpstream;
use futures_util::{SinkExt, StreamExt};
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};

pub use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// A client's WebSocket.
pub struct Socket(pub WebSocketStream<TcpStream>);

/// Opens a WebSocket through the proxy.
pub async fn open(address: SocketAddr, fields: &[(&str, &str)]) -> Socket {
    try_open(address, fields).await.expect("a WebSocket")
}

/// Opens a WebSocket, or says why not.
pub async fn try_open(
    address: SocketAddr,
    fields: &[(&str, &str)],
) -> Result<Socket, tungstenite::Error> {
    let mut request = format!("ws://{address}/socket").into_client_request()?;
    for (name, value) in fields {
        let name: http::HeaderName = name.parse().expect("a name");
        request
            .headers_mut()
            .insert(name, value.parse().expect("a value"));
    }
    let stream = TcpStream::connect(address)
        .await
        .map_err(tungstenite::Error::Io)?;
    stream.set_nodelay(true).map_err(tungstenite::Error::Io)?;
    let opening = tokio_tungstenite::client_async(request, stream);
    let (socket, _) = soon("the answer to an upgrade", opening).await?;
    Ok(Socket(socket))
}

impl Socket {
    /// Sends a message.
    pub async fn send(&mut self, message: Message) {
        soon("a message sent", self.0.send(message))
            .await
            .expect("sent");
    }

    /// The next message.
    pub async fn next(&mut self) -> Message {
        match soon("a message", self.0.next()).await {
            Some(Ok(message)) => message,
            other => panic!("expected a message: {other:?}"),
        }
    }

    /// Sends a text and expects it back.
    pub async fn echo(&mut self, text: &str) {
        self.send(Message::text(text)).await;
        assert_eq!(self.next().await, Message::text(text));
    }

    /// The close code the other side sends, once everything before is read and the close is answered; none if it just
    /// ends.
    pub async fn close_code(&mut self) -> Option<u16> {
        let mut code = None;
        while let Some(Ok(message)) = soon("a close", self.0.next()).await {
            if let Message::Close(Some(CloseFrame { code: given, .. })) = message {
                code = Some(given.into());
            }
        }
        code
    }

    /// Closes it and waits for the other side to agree.
    pub async fn close(mut self) {
        soon("a close sent", self.0.close(None))
            .await
            .expect("closed");
        while let Some(Ok(_)) = soon("the close answered", self.0.next()).await {}
    }
}

/// What an echo saw at the end of a WebSocket.
pub type Closes = tokio::sync::mpsc::UnboundedReceiver<Option<u16>>;

/// Sends every message back; tells the close code of each WebSocket when it ends.
pub async fn echo() -> (TestUpstream, Closes) {
    let (tell, closes) = tokio::sync::mpsc::unbounded_channel();
    let upstream = TestUpstream::raw(move |stream, _| {
        let tell = tell.clone();
        async move {
            let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else {
                return;
            };
            let mut code = None;
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Close(frame) = &message {
                    code = frame.as_ref().map(|frame| frame.code.into());
                }
                let is_data = message.is_text() || message.is_binary();
                if is_data && socket.send(message).await.is_err() {
                    break;
                }
            }
            let _ = tell.send(code);
        }
    })
    .await;
    (upstream, closes)
}
