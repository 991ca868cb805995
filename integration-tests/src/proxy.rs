//! A line between a consumer and its Postgres that spoils what it is told to: one bit
//! of each message that carries a mark, for as long as it is faulty.
//!
//! Caveat: it reads the server's side frame by frame from the first byte on, so that
//! the connection may not ask for TLS; ours do not.

use anyhow::{Context, Result};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// `d`, length, `w`, start, end and time: then comes the message of the stream.
const PAYLOAD_AT: usize = 5 + 25;
const HEADER_BYTES: usize = 5;

pub struct Proxy {
    address: SocketAddr,
    fault: Arc<Fault>,
}

struct Fault {
    mark: &'static [u8],
    is_on: AtomicBool,
    spoiled: AtomicUsize,
    passed_bytes: AtomicUsize,
}

impl Proxy {
    /// Listens on a port of its own; whole until [`Proxy::spoil`].
    pub fn to(server: SocketAddr, mark: &'static [u8]) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("the proxy's port")?;
        let address = listener.local_addr()?;
        let fault = Arc::new(Fault {
            mark,
            is_on: AtomicBool::new(false),
            spoiled: AtomicUsize::new(0),
            passed_bytes: AtomicUsize::new(0),
        });
        let of_listener = fault.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A connection that cannot be made is closed, as a dead server's is.
                let _ = join(client, server, of_listener.clone());
            }
        });
        Ok(Self { address, fault })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn spoil(&self) {
        self.fault.is_on.store(true, Ordering::SeqCst);
    }

    pub fn heal(&self) {
        self.fault.is_on.store(false, Ordering::SeqCst);
    }

    /// Messages that did not arrive as they were sent.
    pub fn spoiled(&self) -> usize {
        self.fault.spoiled.load(Ordering::SeqCst)
    }

    /// What the server has said past it.
    pub fn passed_bytes(&self) -> usize {
        self.fault.passed_bytes.load(Ordering::SeqCst)
    }
}

fn join(client: TcpStream, server: SocketAddr, fault: Arc<Fault>) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Both);
    });
    std::thread::spawn(move || {
        let _ = pass_frames(&server, &client, &fault);
        let _ = client.shutdown(Shutdown::Both);
    });
    Ok(())
}

fn pass_frames(mut server: &TcpStream, mut client: &TcpStream, fault: &Fault) -> io::Result<()> {
    loop {
        let mut header = [0; HEADER_BYTES];
        server.read_exact(&mut header)?;
        let [_, len @ ..] = header;
        let mut frame = header.to_vec();
        let body_bytes = u64::from(u32::from_be_bytes(len)).saturating_sub(4);
        let read = server.take(body_bytes).read_to_end(&mut frame)?;
        if read as u64 != body_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if fault.is_on.load(Ordering::SeqCst) && is_marked(&frame, fault.mark) {
            // `I` becomes `i`, which is no message of the protocol.
            frame[PAYLOAD_AT] ^= 0x20;
            fault.spoiled.fetch_add(1, Ordering::SeqCst);
        }
        client.write_all(&frame)?;
        fault.passed_bytes.fetch_add(frame.len(), Ordering::SeqCst);
    }
}

fn is_marked(frame: &[u8], mark: &[u8]) -> bool {
    let is_wal = frame.first() == Some(&b'd') && frame.get(HEADER_BYTES) == Some(&b'w');
    is_wal
        && frame
            .get(PAYLOAD_AT..)
            .is_some_and(|payload| payload.windows(mark.len()).any(|part| part == mark))
}
