//! What nobody well-behaved sends to a name server: it goes on answering, and keeps nothing of it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use hickory_proto::{op::Message, rr::RecordType};

use crate::{
    client::{Over, Trust, ask, framed, question, read_framed, socket_for},
    differential::{Chance, ZONE, wild},
    harness::{Folder, Nuage, until},
};

/// Growth that is no leak: buffers of first use.
const SLACK_KIB: u64 = 6_144;

fn start(dns: &str) -> Nuage {
    let folder = Folder::of_dns(&format!("rate_limit = 0\n{dns}"), "");
    folder.zone(ZONE);
    folder.serve()
}

fn alive(nuage: &Nuage) {
    let tls = Over::Tls(Trust::in_file(nuage.ca()));
    for (server, over) in [
        (nuage.dns[0], Over::Udp),
        (nuage.dns[0], Over::Tcp),
        (nuage.dot[0], tls),
    ] {
        let answer = ask(server, over, "alice.w.example.", RecordType::A);
        assert_eq!(answer.answers.len(), 1);
    }
    let log = nuage.log();
    assert!(
        !log.contains("panic") && !log.contains("worker failed"),
        "{log}"
    );
}

fn connect(server: SocketAddr, patience: Duration) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    stream
}

/// Whether the other end closes (or has reset) the connection within its patience.
fn closes(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn thousands_of_broken_datagrams_and_frames_leave_nothing_behind() {
    let nuage = start("");
    let mut chance = Chance(3);
    let one = |chance: &mut Chance| {
        let mut message = wild(chance);
        if chance.percent(70) {
            chance.damage(&mut message);
        }
        message
    };
    let mut before = 0;
    for round in 0..4 {
        for server in nuage.dns {
            let socket = socket_for(server);
            for _ in 0..500 {
                // An empty datagram is one too.
                socket.send_to(&one(&mut chance), server).unwrap();
            }
        }
        for number in 0..60 {
            let mut stream = connect(nuage.dns[number % 2], Duration::from_millis(20));
            let mut octets = Vec::new();
            for _ in 0..10 {
                octets.extend(match chance.below(4) {
                    // A frame of garbage, garbage without a frame, a frame that is not whole.
                    0 => framed(&one(&mut chance)),
                    1 => one(&mut chance),
                    2 => framed(&one(&mut chance))[..1].to_vec(),
                    _ => framed(
                        &question("alice.w.example.", RecordType::A)
                            .to_vec()
                            .unwrap(),
                    ),
                });
            }
            // It may have closed already.
            stream.write_all(&octets).unwrap_or_default();
            stream.read(&mut [0; 4_096]).map(drop).unwrap_or_default();
        }
        for _ in 0..20 {
            let mut stream = connect(nuage.dot[0], Duration::from_millis(20));
            stream.write_all(&one(&mut chance)).unwrap_or_default();
            stream.read(&mut [0; 4_096]).map(drop).unwrap_or_default();
        }
        alive(&nuage);
        // The first round fills what is kept anyway.
        match round {
            0 => before = nuage.resident_kib(),
            _ => assert!(
                nuage.resident_kib() < before + SLACK_KIB,
                "{before} KiB before, {} after",
                nuage.resident_kib()
            ),
        }
    }
}

#[test]
fn pipelined_questions_are_all_answered_in_order() {
    let nuage = start("");
    let names = ["alice", "nobody", "chain", "x.wild", "sub", "big"];
    let messages: Vec<Vec<u8>> = (0..100)
        .map(|id| {
            let name = format!("{}.w.example.", names[usize::from(id) % names.len()]);
            let mut message = question(&name, RecordType::TXT);
            message.metadata.id = id;
            message.to_vec().unwrap()
        })
        .collect();
    let all: Vec<u8> = messages
        .iter()
        .flat_map(|message| framed(message))
        .collect();
    let check = |stream: &mut dyn Read, count: u16| {
        for id in 0..count {
            let mut stream = &mut *stream;
            let answer = read_framed(&mut stream).unwrap();
            assert_eq!(Message::from_vec(&answer).unwrap().metadata.id, id);
        }
    };
    // In one segment; and octet by octet.
    let patience = Duration::from_secs(10);
    let mut stream = connect(nuage.dns[0], patience);
    stream.write_all(&all).unwrap();
    check(&mut stream, 100);
    let mut tls = Trust::in_file(nuage.ca()).connect(nuage.dot[1]);
    tls.write_all(&all).unwrap();
    tls.flush().unwrap();
    check(&mut tls, 100);
    let mut stream = connect(nuage.dns[1], patience);
    stream.set_nodelay(true).unwrap();
    for octet in &all[..300] {
        stream.write_all(&[*octet]).unwrap();
    }
    stream.write_all(&all[300..]).unwrap();
    check(&mut stream, 100);
    // What came before a frame that ends the connection is answered: an empty one, a response, one too
    // short to be a message.
    let mut response = messages[0].clone();
    response[2] |= 0x80;
    for bad in [&[][..], &response, &[0; 5]] {
        let mut stream = connect(nuage.dns[0], patience);
        let good: Vec<u8> = messages[..20]
            .iter()
            .flat_map(|message| framed(message))
            .collect();
        let more = framed(&messages[20]);
        stream
            .write_all(&[good, framed(bad), more].concat())
            .unwrap();
        check(&mut stream, 20);
        assert!(closes(&mut stream), "{bad:?}");
    }
    // A client that leaves without reading costs nobody anything.
    for _ in 0..20 {
        let mut stream = connect(nuage.dns[0], patience);
        stream.write_all(&all).unwrap();
    }
    // One that sends and never reads is cut off: its answers find no room.
    let mut stream = connect(nuage.dns[0], Duration::from_millis(100));
    stream.set_nonblocking(true).unwrap();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2)
        && !matches!(stream.write(&all), Err(error) if error.kind() != std::io::ErrorKind::WouldBlock)
    {
    }
    alive(&nuage);
}

#[test]
fn the_slow_and_the_silent_are_closed() {
    let nuage =
        start("tcp_idle_seconds = 1\ntcp_connections = 60\ntcp_connections_per_address = 40");
    let patience = Duration::from_secs(6);
    let whole = framed(
        &question("alice.w.example.", RecordType::A)
            .to_vec()
            .unwrap(),
    );
    let beginnings: [&[u8]; 5] = [
        &[],
        &[0],
        &[255, 255],
        &whole[..3],
        &whole[..whole.len() - 1],
    ];
    let started = Instant::now();
    let mut silent: Vec<TcpStream> = beginnings
        .iter()
        .flat_map(|octets| {
            nuage
                .dns
                .into_iter()
                .chain([nuage.dot[0]])
                .map(move |server| (octets, server))
        })
        .map(|(octets, server)| {
            let mut stream = connect(server, patience);
            stream.write_all(octets).unwrap();
            stream
        })
        .collect();
    // A drip does not extend the deadline of a message.
    let mut dripping = connect(nuage.dns[0], Duration::from_millis(50));
    let mut ended = None;
    for octet in whole.iter().cycle().take(60) {
        let gone = dripping.write_all(&[*octet]).is_err();
        if gone || matches!(dripping.read(&mut [0; 16]), Ok(0)) {
            ended = Some(started.elapsed());
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = ended.expect("the dripping one ends");
    assert!(ended < Duration::from_secs(3), "{ended:?}");
    for stream in &mut silent {
        assert!(closes(stream));
    }
    assert!(started.elapsed() < patience);
    // More at once than one address may have: closed at once, while another address is served.
    let held: Vec<TcpStream> = (0..40).map(|_| connect(nuage.dns[0], patience)).collect();
    let mut refused = 0;
    for _ in 0..5 {
        let mut stream = connect(nuage.dns[0], Duration::from_millis(300));
        refused += usize::from(closes(&mut stream));
    }
    assert_eq!(refused, 5);
    let other = ask(nuage.dns[1], Over::Tcp, "alice.w.example.", RecordType::A);
    assert_eq!(other.answers.len(), 1);
    drop(held);
    until("there is room again", || {
        let mut stream = connect(nuage.dns[0], Duration::from_millis(300));
        stream.write_all(&whole).is_ok() && read_framed(&mut stream).is_some()
    });
    alive(&nuage);
}
