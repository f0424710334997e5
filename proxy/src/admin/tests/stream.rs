use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::world::{DEADLINE, HOSTILE, World};
use crate::admin::feed::MAX_VIEWERS;

struct Viewer {
    lines: tokio::io::Lines<BufReader<TcpStream>>,
}

impl Viewer {
    async fn open(world: &World) -> Self {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let request = format!("GET /events HTTP/1.1\r\nhost: {}\r\n\r\n", world.address);
        stream.write_all(request.as_bytes()).await.unwrap();
        Self { lines: BufReader::new(stream).lines() }
    }

    /// The next line; `None` when the stream ended.
    async fn line(&mut self) -> Option<String> {
        timeout(DEADLINE, self.lines.next_line()).await.unwrap().unwrap()
    }

    async fn event(&mut self, name: &str) -> Value {
        loop {
            let line = self.line().await.expect("the stream goes on");
            if line == format!("event: {name}") {
                break;
            }
        }
        loop {
            let line = self.line().await.expect("the stream goes on");
            if let Some(data) = line.strip_prefix("data: ") {
                return serde_json::from_str(data).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn the_first_event_comes_at_once_and_frames_follow() {
    let world = World::start().await;
    let mut viewer = Viewer::open(&world).await;
    let hello = viewer.event("hello").await;
    assert_eq!(hello["node"], "gateway-0");
    assert_eq!(hello["io"]["driver"], "epoll");
    assert!(hello["frame"].is_null(), "nobody watched before");
    for _ in 0..20 {
        world.route.requests.add_one();
        world.route.by_class[2].add_one();
        world.route.latency.record(3000);
    }
    let mut seen = 0.0;
    while seen < 20.0 {
        let frame = viewer.event("frame").await;
        let route = &frame["routes"][0];
        assert_eq!(route["route"], HOSTILE);
        assert_eq!(frame["totals"]["ejected"], 1);
        assert_eq!(frame["totals"]["rate"], route["rate"]);
        // The hundred requests before anybody watched are no traffic of this second.
        let rate = route["rate"].as_f64().unwrap();
        assert!(rate < 60.0, "{rate}");
        if rate > 0.0 {
            assert_eq!(route["success"], 1.0);
            assert!((3000..=3300).contains(&route["p99_us"].as_u64().unwrap()), "{route}");
        }
        seen += rate * 1.05;
    }
    let mut second = Viewer::open(&world).await;
    let hello = second.event("hello").await;
    assert!(hello["frame"]["at_unix_ms"].as_u64().is_some());
    assert!(!hello["history"]["total"].as_array().unwrap().is_empty());
    assert_eq!(
        hello["history"]["routes"].as_array().unwrap().len(),
        hello["frame"]["routes"].as_array().unwrap().len()
    );
}

#[tokio::test]
async fn a_shutdown_ends_the_streams() {
    let world = World::start().await;
    let mut viewer = Viewer::open(&world).await;
    viewer.event("hello").await;
    world.stop().await;
    while viewer.line().await.is_some() {}
}

#[tokio::test]
async fn one_viewer_too_many_is_told_so() {
    let world = World::start().await;
    let mut viewers = Vec::new();
    for _ in 0..MAX_VIEWERS {
        let mut viewer = Viewer::open(&world).await;
        viewer.event("hello").await;
        viewers.push(viewer);
    }
    assert_eq!(world.ask("GET", "/events").await.status, 503);
    viewers.pop();
    let mut last = Viewer::open(&world).await;
    // The place is free once the server has seen the close.
    while last.line().await.unwrap().contains("503") {
        last = Viewer::open(&world).await;
    }
    last.event("hello").await;
}
