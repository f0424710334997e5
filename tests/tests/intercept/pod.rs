//! A pod and a node: two network namespaces with a pair of veth devices between them, and who listens there.
//!
//! Every listener answers a connection with one line: its own name, where the client wanted to go, and from which
//! address it came. So whoever connects, by whatever program, can tell where it ended.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use outrigger_tests::world::binary;
use outrigger_tests::world::namespace::{self, ip};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

pub(crate) const POD: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 18, 2, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x198, 0x18, 2, 0, 0, 0, 1))];
pub(crate) const NODE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 18, 2, 2)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x198, 0x18, 2, 0, 0, 0, 2))];
/// A service somewhere else, which the node stands in for.
pub(crate) const SERVICE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, 9))];
/// Another one, in a network that settings exclude.
pub(crate) const EXCLUDED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 9, 0, 9)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 9))];

const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Runs a program here; its output if it succeeded.
#[track_caller]
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; `make interop` installs it"));
    assert!(
        output.status.success(),
        "{program} {}: {}{}; this test makes network namespaces, which takes root",
        args.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Pod,
    Node,
}

/// Two namespaces, deleted when this is dropped.
pub(crate) struct Pod {
    names: [String; 2],
}

impl Pod {
    /// With IPv4, and with IPv6 unless told otherwise.
    pub(crate) fn new(has_ipv6: bool) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let made =
            Self { names: ["pod", "node"].map(|end| format!("outrigger-{}-{number}-{end}", std::process::id())) };
        let [pod, node] = &made.names;
        for name in [pod, node] {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        if !has_ipv6 {
            let off = "net.ipv6.conf.all.disable_ipv6=1";
            run("ip", &["netns", "exec", pod, "sysctl", "-q", "-w", off]);
        }
        ip(&format!("link add eth0 netns {pod} type veth peer name wire netns {node}"));
        for (name, device, address) in [(pod, "eth0", POD), (node, "wire", NODE)] {
            ip(&format!("-n {name} addr add {}/24 dev {device}", address[0]));
            if has_ipv6 {
                ip(&format!("-n {name} -6 addr add {}/64 dev {device} nodad", address[1]));
            }
            ip(&format!("-n {name} link set {device} up"));
        }
        for address in [SERVICE, EXCLUDED] {
            ip(&format!("-n {node} addr add {}/32 dev lo", address[0]));
            ip(&format!("-n {node} -6 addr add {}/128 dev lo nodad", address[1]));
        }
        ip(&format!("-n {pod} route add default via {}", NODE[0]));
        if has_ipv6 {
            ip(&format!("-n {pod} -6 route add default via {}", NODE[1]));
        }
        made
    }

    /// Runs `act` on a thread inside of one of them.
    pub(crate) fn inside<T: Send>(&self, end: End, act: impl FnOnce() -> T + Send) -> T {
        namespace::inside(self.name(end), act)
    }

    pub(crate) fn name(&self, end: End) -> &str {
        &self.names[usize::from(end == End::Node)]
    }

    /// A program inside of the pod, not yet started.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(End::Pod), program]);
        command
    }

    /// Runs a program inside of the pod.
    #[track_caller]
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        let mut all = vec!["netns", "exec", self.name(End::Pod), program];
        all.extend(args);
        run("ip", &all)
    }

    /// `outrigger-proxy intercept` inside of the pod, as root with all capabilities.
    pub(crate) fn intercept(&self, args: &[&str]) -> Said {
        let proxy = binary::find("outrigger-proxy").unwrap();
        Said::of(self.command(&proxy.to_string_lossy()).arg("intercept").args(args).output().unwrap())
    }

    #[track_caller]
    pub(crate) fn apply(&self, args: &[&str]) -> String {
        self.intercept(&[&["apply"], args].concat()).fine()
    }

    /// What every packet filter here holds, without counters and comments of the programs.
    pub(crate) fn ruleset(&self) -> String {
        let mut text = self.run("nft", &["list", "ruleset"]);
        for program in ["iptables-legacy-save", "ip6tables-legacy-save"] {
            text += &self.run(program, &[]);
        }
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let mut kept = String::new();
        for line in lines {
            let line = line.split(" [").next().unwrap_or(line);
            let words: Vec<&str> = line.split("counter packets ").collect();
            // The numbers after it move with the traffic.
            let still = words.iter().enumerate().map(|(at, part)| match at {
                0 => *part,
                _ => part.splitn(4, ' ').nth(3).unwrap_or_default(),
            });
            writeln!(kept, "{}", still.collect::<Vec<_>>().join("counter ")).unwrap();
        }
        for family in ["-4", "-6"] {
            kept += &self.run("ip", &[family, "rule", "list"]);
            let table = self.command("ip").args([family, "route", "list", "table", "1337"]).output().unwrap();
            kept += &String::from_utf8_lossy(&table.stdout);
        }
        kept
    }

    /// Listens on a port of one end, for both families.
    pub(crate) fn listen(&self, end: End, name: &'static str, port: u16) -> Listener {
        self.inside(end, || Listener::start(name, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), false))
    }

    /// Listens as a transparent proxy does.
    pub(crate) fn listen_transparent(&self, name: &'static str, port: u16) -> Listener {
        self.inside(End::Pod, || Listener::start(name, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), true))
    }

    /// Connects from one end; the line that it is answered with, or why there is none.
    pub(crate) fn ask(&self, end: End, to: SocketAddr) -> String {
        self.inside(end, || {
            TcpStream::connect_timeout(&to, ANSWER_MAX).and_then(read_line).unwrap_or_else(|error| error.to_string())
        })
    }

    /// Connects from the pod as another user or group.
    pub(crate) fn ask_as(&self, uid: u32, gid: u32, to: SocketAddr) -> String {
        let script = format!("exec 3<>/dev/tcp/{}/{} && read -t 5 line <&3 && echo \"$line\"", to.ip(), to.port());
        let owner = [format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()];
        let output = self.command("setpriv").args(owner).args(["bash", "-c", &script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Connects inside of the pod, as a proxy that keeps its client's address: of its group, with root's capabilities.
    pub(crate) fn ask_from(&self, source: IpAddr, to: SocketAddr) -> String {
        let script = "import socket, sys\n\
            source, to, port = sys.argv[1], sys.argv[2], int(sys.argv[3])\n\
            v6 = ':' in to\n\
            s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET)\n\
            s.settimeout(5)\n\
            # IPV6_TRANSPARENT, IP_TRANSPARENT\n\
            s.setsockopt(*((socket.IPPROTO_IPV6, 75, 1) if v6 else (socket.IPPROTO_IP, 19, 1)))\n\
            s.bind((source, 0))\n\
            s.connect((to, port))\n\
            print(s.makefile().readline(), end='')";
        let (source, address, port) = (source.to_string(), to.ip().to_string(), to.port().to_string());
        let args = ["--regid=1337", "--clear-groups", "python3", "-c", script, &source, &address, &port];
        self.run("setpriv", &args).trim_end().to_owned()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for name in &self.names {
            namespace::delete(name);
        }
    }
}

fn read_line(stream: TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// What a program said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub out: String,
    pub err: String,
    pub code: Option<i32>,
}

impl Said {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code(),
        }
    }

    #[track_caller]
    pub(crate) fn fine(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    /// That it failed so and said this.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        for word in words {
            assert!(self.err.contains(word), "no `{word}` in: {}{}", self.out, self.err);
        }
    }
}

/// Answers connections until it is dropped.
pub(crate) struct Listener {
    socket: Arc<Socket>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn start(name: &'static str, address: SocketAddr, is_transparent: bool) -> Self {
        // A pod without IPv6 listens by IPv4 alone.
        let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
        let listen = |address: SocketAddr| -> std::io::Result<Socket> {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            if is_transparent {
                // One for either family, on the same socket.
                socket.set_ip_transparent_v4(true)?;
                socket.set_ip_transparent_v6(true)?;
            }
            socket.bind(&address.into())?;
            socket.listen(64)?;
            Ok(socket)
        };
        let socket = listen(address).or_else(|_| listen(v4)).unwrap_or_else(|error| panic!("{address}: {error}"));
        let socket = Arc::new(socket);
        let own = Arc::clone(&socket);
        let thread = thread::spawn(move || {
            while let Ok((stream, from)) = own.accept() {
                answer(name, stream, from.as_socket().unwrap());
            }
        });
        Self { socket, thread: Some(thread) }
    }
}

/// `outbound 203.0.113.9:80 from 198.18.2.1`.
fn answer(name: &str, stream: Socket, from: SocketAddr) {
    let told = |socket: SockRef<'_>| socket.original_dst_v4().or_else(|_| socket.original_dst_v6()).ok();
    let local = stream.local_addr().unwrap().as_socket().unwrap();
    let to = told(SockRef::from(&stream)).and_then(|to| to.as_socket()).unwrap_or(local);
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let line = format!("{name} {} from {}\n", plain(to), plain(from).ip());
    // A client that does not wait for it is no loss.
    let _ = TcpStream::from(stream).write_all(line.as_bytes());
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
