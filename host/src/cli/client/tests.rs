//! The client against a tiny server on loopback and on a Unix socket.

use super::token::header_of;
use super::*;
use http_body_util::Full;
use hyper::service::service_fn;

/// Answers every request on one connection after the other.
async fn serve_on<S, F>(socket: S, answer: F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Bytes>) -> Response<Full<Bytes>> + Clone + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>(answer(Request::from_parts(parts, body)))
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(socket), service)
        .await;
}

/// A server on loopback; the client that speaks to it with the token `secret`.
async fn client_of<F>(answer: F) -> Client
where
    F: Fn(Request<Bytes>) -> Response<Full<Bytes>> + Clone + Send + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve_on(socket, answer.clone()));
        }
    });
    Client {
        address: Address::Tcp(address),
        token: Token {
            value: Some(header_of("secret", "test").expect("a token")),
            places: vec!["a test".to_owned()],
        },
    }
}

fn respond(status: u16, body: &'static str) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(header::ETAG, "\"7\"")
        .body(Full::from(body))
        .expect("a response")
}

#[tokio::test]
async fn a_request_carries_token_host_and_escaped_path_and_gives_body_and_revision() {
    let client = client_of(|request| {
        let headers = request.headers();
        assert_eq!(headers[header::AUTHORIZATION], "Bearer secret");
        let host = headers[header::HOST].to_str().expect("text");
        assert!(host.starts_with("127.0.0.1:"), "{host}");
        assert_eq!(request.uri().path(), "/v1/kv/b/a%2Fb%20c");
        respond(200, r#"{"revision":7}"#)
    })
    .await;
    let answer = client
        .get(&format!("/v1/kv/b/{}", encode("a/b c")))
        .await
        .expect("an answer");
    assert_eq!(answer.etag.as_deref(), Some("7"));
    let json: serde_json::Value = answer.json().expect("JSON");
    assert_eq!(json["revision"], 7);
}

#[tokio::test]
async fn an_upload_arrives_whole() {
    let client = client_of(|request| {
        assert_eq!(request.method(), Method::PUT);
        assert_eq!(request.headers()[header::CONTENT_LENGTH], "300000");
        assert!(request.body().iter().all(|b| *b == 9));
        respond(200, "{}")
    })
    .await;
    let path = "/v1/plugins/x";
    let body = vec![9; 300_000];
    client
        .upload(Method::PUT, path, "application/wasm", body, "compiling")
        .await
        .expect("an answer");
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("admin.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("bind");
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.expect("accept");
        serve_on(socket, |request| {
            assert_eq!(request.headers()[header::HOST], "localhost");
            respond(200, "ok")
        })
        .await;
    });
    let client = Client::new(Address::Unix(path), None).expect("no token needed");
    let answer = client.get("/healthz").await.expect("an answer");
    assert_eq!(&answer.body[..], b"ok");
}

#[tokio::test]
async fn a_problem_is_shown_with_its_detail_and_each_of_its_errors() {
    let client = client_of(|_| {
        respond(
            422,
            r#"{"title":"invalid value","detail":"2 lines are wrong","code":"invalid-value",
                "errors":[{"line":3,"message":"expected a host"},{"line":9,"column":2,"message":"no value"}]}"#,
        )
    })
    .await;
    let error = client.get("/v1/kv/b").await.expect_err("a problem");
    let ClientError::Problem(problem) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(problem.code.as_deref(), Some("invalid-value"));
    assert_eq!(
        error.to_string(),
        "2 lines are wrong (422)\n  line 3: expected a host\n  line 9, column 2: no value"
    );
}

#[tokio::test]
async fn an_answer_that_is_not_ours_is_told_with_its_text() {
    let client = client_of(|_| respond(502, "bad gateway from elsewhere\n")).await;
    let error = client.get("/").await.expect_err("an error");
    let text = error.to_string();
    assert!(matches!(error, ClientError::Foreign { .. }), "{text}");
    for expected in [
        &*client.address(),
        "bad gateway from elsewhere (502)",
        "--admin",
    ] {
        assert!(text.contains(expected), "{text}");
    }
}

#[tokio::test]
async fn a_refused_token_says_where_it_came_from() {
    let client = client_of(|_| respond(401, "")).await;
    let text = client.get("/").await.expect_err("refused").to_string();
    assert!(text.contains("it was read from a test"), "{text}");
}

#[tokio::test]
async fn a_missing_token_says_where_it_was_looked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut client = client_of(|_| respond(401, "")).await;
    client.token = find_token(None, Some(dir.path())).expect("none is no error");
    let text = client.get("/").await.expect_err("refused").to_string();
    let place = dir.path().join("admin.token (not there)");
    assert!(text.contains(&place.display().to_string()), "{text}");
}

#[tokio::test]
async fn a_refused_connection_names_the_address_and_what_to_do() {
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.local_addr().expect("bound")
    };
    let client = Client::new(Address::Tcp(address), None).expect("no token needed");
    let text = client.get("/").await.expect_err("nobody there").to_string();
    assert!(text.contains(&address.to_string()), "{text}");
    assert!(text.contains("throwbar serve"), "{text}");
    assert!(text.contains("--admin"), "{text}");
}

#[test]
fn the_token_comes_from_the_file_named_then_the_data_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("admin.token"), "abc\n").expect("write");
    let token = find_token(None, Some(dir.path())).expect("a token");
    assert_eq!(token.value.expect("found"), "Bearer abc");
    let missing = dir.path().join("missing");
    let error = find_token(Some(&missing), None).expect_err("it was asked for");
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn a_token_that_could_not_be_a_header_is_refused() {
    assert!(header_of("a\nb", "file").is_err());
    assert!(header_of("", "file").is_err());
}

#[test]
fn addresses_are_read_in_each_of_their_forms() {
    let tcp = |text: &str| Ok(Address::Tcp(text.parse().expect("an address")));
    assert_eq!(parse_address("127.0.0.1:2019"), tcp("127.0.0.1:2019"));
    assert_eq!(parse_address("localhost:1"), tcp("127.0.0.1:1"));
    assert_eq!(parse_address(":2019"), tcp("127.0.0.1:2019"));
    assert_eq!(parse_address("http://[::1]:9/"), tcp("[::1]:9"));
    assert_eq!(
        parse_address("unix:run/a.sock"),
        Ok(Address::Unix("run/a.sock".into()))
    );
    for wrong in ["", "unix:", "2019", "host:2019", "127.0.0.1:99999"] {
        let message = parse_address(wrong).expect_err(wrong);
        assert!(message.contains("expected"), "{wrong}: {message}");
    }
}

#[test]
fn every_byte_that_means_something_in_a_path_is_escaped() {
    assert_eq!(encode("id-1_a.b~c"), "id-1_a.b~c");
    assert_eq!(encode("a/b?c#d%e f"), "a%2Fb%3Fc%23d%25e%20f");
    assert_eq!(encode("ü"), "%C3%BC");
    assert_eq!(encode(".."), "%2E%2E");
    assert_eq!(encode("..."), "...");
}

#[test]
fn a_query_holds_only_the_parameters_that_have_a_value() {
    let path = with_query(
        "/v1/streams".to_owned(),
        &[
            ("plugin", None),
            ("key", Some("a&b".to_owned())),
            ("limit", Some("5".to_owned())),
        ],
    );
    assert_eq!(path, "/v1/streams?key=a%26b&limit=5");
}
