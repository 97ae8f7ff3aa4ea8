//! The proxy over real sockets.

use std::time::Instant;

use godwit_migration::transport::{Address, Listener, Stream, WhenIdle};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn loopback() -> Address {
    "tcp:127.0.0.1:0".parse().unwrap()
}

/// A proxy, and the destination behind it.
struct Setting {
    proxy: Proxy,
    destination: Listener,
}

impl Setting {
    fn new(link: Option<&str>, taps: Option<Box<MakeTap>>) -> Setting {
        let destination = Listener::bind(&loopback()).unwrap();
        let link = link.map(|link| link.parse().unwrap());
        let options = Options { link, taps };
        let proxy = Proxy::start(&loopback(), destination.address().clone(), options).unwrap();
        Setting { proxy, destination }
    }

    fn connect(&self) -> (Stream, Stream) {
        let source = Stream::connect(self.proxy.address(), PATIENCE, None).unwrap();
        let destination = self.destination.accept().unwrap();
        for stream in [&source, &destination] {
            stream.set_receive_timeout(Some(PATIENCE)).unwrap();
        }
        (source, destination)
    }
}

/// Everything until the stream ends or breaks; a stream that does neither fails the test.
fn receive_all(stream: &Stream) -> Vec<u8> {
    let (mut all, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        match stream.receive(&mut chunk, WhenIdle::Wait) {
            Ok(0) => return all,
            Ok(bytes) => all.extend_from_slice(&chunk[..bytes]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return all,
            Err(error) => panic!("neither bytes nor an end: {error}"),
        }
    }
}

fn end_of_sending(stream: &Stream) {
    let socket = stream.plain_socket().unwrap();
    rustix::net::shutdown(socket, rustix::net::Shutdown::Write).unwrap();
}

fn noise(bytes: usize) -> Vec<u8> {
    let next = |seed: &mut u32| {
        *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*seed >> 24) as u8)
    };
    (0..bytes).scan(42, |seed, _| next(seed)).collect()
}

#[test]
fn links_are_written_as_rate_and_round_trip() {
    let link = |text: &str| text.parse::<Link>();
    let gigabit = Link { rate_bits_per_s: 1_000_000_000, round_trip: Duration::from_millis(2) };
    assert_eq!(link("1G,2ms"), Ok(gigabit));
    assert_eq!(link("1000M,2000us"), Ok(gigabit));
    assert_eq!(link("1000000000,2ms"), Ok(gigabit));
    assert_eq!(link("10M,0").map(|link| link.round_trip), Ok(Duration::ZERO));
    assert_eq!(gigabit.to_string(), "1Gbit/s, 2ms round trip");
    for text in ["1G", "1G,2", "G,2ms", "1G,ms", "+1G,2ms", "1T,2ms", "-1G,1ms", "1G,2ms,3", ""] {
        assert!(link(text).unwrap_err().contains("is not RATE,RTT"), "{text}");
    }
    assert!(link("1K,2ms").unwrap_err().contains("between"));
    assert!(link("2000G,2ms").unwrap_err().contains("between"));
    assert!(link("1G,3s").unwrap_err().contains("longer"));
}

#[test]
fn bytes_arrive_intact_both_ways_and_so_does_each_end() {
    for link in [None, Some("400M,1ms")] {
        let setting = Setting::new(link, None);
        let (source, destination) = setting.connect();
        let sent = noise(3 << 20);
        std::thread::scope(|scope| {
            let echo = scope.spawn(|| {
                let received = receive_all(&destination);
                destination.send(&received, false).unwrap();
                end_of_sending(&destination);
                received
            });
            source.send(&sent, false).unwrap();
            end_of_sending(&source);
            assert!(receive_all(&source) == sent, "back at the source");
            assert!(echo.join().unwrap() == sent, "at the destination");
        });
    }
}

#[test]
fn a_byte_takes_a_round_trip_there_and_back() {
    let setting = Setting::new(Some("1G,30ms"), None);
    let (source, destination) = setting.connect();
    let begin = Instant::now();
    let mut byte = [1];
    source.send(&byte, false).unwrap();
    destination.receive_exact(&mut byte).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(15));
    destination.send(&byte, false).unwrap();
    source.receive_exact(&mut byte).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(30));
}

#[test]
fn connections_share_the_rate() {
    let setting = Setting::new(Some("16M,0"), None);
    let pairs = [setting.connect(), setting.connect()];
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for (source, destination) in &pairs {
            scope.spawn(move || {
                source.send(&noise(100_000), false).unwrap();
                end_of_sending(source);
            });
            scope.spawn(move || assert_eq!(receive_all(destination).len(), 100_000));
        }
    });
    // 200,000 bytes at 2,000,000 bytes a second.
    assert!(begin.elapsed() >= Duration::from_millis(95), "{:?}", begin.elapsed());
}

#[test]
fn a_side_that_is_gone_ends_the_other() {
    let setting = Setting::new(None, None);
    let (source, destination) = setting.connect();
    drop(destination);
    assert!(receive_all(&source).is_empty());
    let (source, destination) = setting.connect();
    // Unread bytes turn the end into a reset.
    destination.send(b"unread", false).unwrap();
    let mut first = [0];
    source.receive_exact(&mut first).unwrap();
    drop(source);
    assert!(receive_all(&destination).is_empty());
    drop(setting.destination);
    let source = Stream::connect(setting.proxy.address(), PATIENCE, None).unwrap();
    source.set_receive_timeout(Some(PATIENCE)).unwrap();
    assert!(receive_all(&source).is_empty(), "nobody listens behind the proxy");
}

#[test]
fn a_cut_ends_what_is_there_and_nothing_later() {
    let setting = Setting::new(Some("1G,10ms"), None);
    let (source, destination) = setting.connect();
    source.send(b"x", false).unwrap();
    let mut byte = [0];
    destination.receive_exact(&mut byte).unwrap();
    setting.proxy.cut();
    assert_eq!((receive_all(&source), receive_all(&destination)), (vec![], vec![]));
    let (source, destination) = setting.connect();
    source.send(b"y", false).unwrap();
    destination.receive_exact(&mut byte).unwrap();
    drop(setting.proxy);
    assert_eq!((receive_all(&source), receive_all(&destination)), (vec![], vec![]));
}

#[test]
fn a_cut_at_a_byte_delivers_exactly_those_before_it() {
    let second = |number, direction| {
        let cut = number == 1 && direction == Direction::ToDestination;
        cut.then(|| Box::new(CutAt::new(100_001)) as Box<dyn Tap>)
    };
    let setting = Setting::new(Some("1G,2ms"), Some(Box::new(second)));
    let sent = noise(200_000);
    for (number, arrive) in [(0, 200_000), (1, 100_001)] {
        let (source, destination) = setting.connect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // It may break under the sender's hands.
                let _ = source.send(&sent, false);
                let socket = source.plain_socket().unwrap();
                let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
            });
            assert!(receive_all(&destination) == sent[..arrive], "connection {number}");
        });
    }
}
