//! The other end of a floor: a process that holds the pages and sends them over TCP.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use clap::Args;
use godwit_uffd::page::PageSize;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};

use crate::error::Error;
use crate::floor::mapping::Image;

/// Holds the pages of a guest and sends them; started by the other commands.
#[derive(Args)]
pub struct ServeArgs {
    /// The bytes to serve; without it, made-up bytes that are not zero.
    #[arg(long)]
    image: Option<PathBuf>,
    /// How many bytes to serve.
    #[arg(long)]
    bytes: usize,
}

/// What a connection is for; its first byte.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Pages one by one: 8 bytes of page index (little endian) in, 4096 bytes out.
    OnDemand,
    /// All pages in order, once.
    Everything,
}

impl Role {
    fn byte(self) -> u8 {
        match self {
            Role::OnDemand => b'd',
            Role::Everything => b'e',
        }
    }
}

/// A server process; ended when dropped.
pub struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts this program again as a server of `bytes` bytes, of `image` if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if it cannot be started, [`Error::NotUnderstood`] if it ends at once.
    pub fn start(image: Option<&Path>, bytes: u64) -> Result<Server, Error> {
        let program = std::env::current_exe().map_err(Error::system("finding this program"))?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--bytes").arg(bytes.to_string());
        if let Some(image) = image {
            command.arg("--image").arg(image);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::system("starting the page server"))?;
        let output = child.stdout.take().expect("the output is piped");
        let mut text = String::new();
        let read = BufReader::new(output).read_line(&mut text);
        let mut server = Server { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        read.map_err(Error::system("reading from the page server"))?;
        server.address = text
            .trim_end()
            .parse()
            .map_err(|_| Error::NotUnderstood { what: "the page server", text })?;
        Ok(server)
    }

    /// Connects for `role`, which begins at once.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the server has gone.
    pub fn connect(&self, role: Role) -> Result<TcpStream, Error> {
        let mut stream = TcpStream::connect(self.address)
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(Error::system("connecting to the page server"))?;
        if role == Role::Everything {
            set_socket_recv_buffer_size(&stream, BULK_BUFFER_BYTES)
                .map_err(Error::system("setting a socket's buffer"))?;
        }
        stream.write_all(&[role.byte()]).map_err(Error::system("asking the page server"))?;
        Ok(stream)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until the standard input ends, which is when the process that started this one ends.
///
/// # Errors
///
/// [`Error::System`] if the bytes cannot be had or nobody can connect.
pub fn serve(args: &ServeArgs) -> Result<(), Error> {
    let bytes = Arc::new(match &args.image {
        Some(image) => Bytes::Image(Image::open(image, args.bytes)?),
        None => Bytes::MadeUp(made_up(args.bytes)),
    });
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(Error::system("listening"))?;
    let address = listener.local_addr().map_err(Error::system("listening"))?;
    println!("{address}");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let bytes = bytes.clone();
            // A connection that ends, ends: the other side says why if it minds.
            std::thread::spawn(move || serve_connection(stream, bytes.get()));
        }
    });
    io::copy(&mut io::stdin(), &mut io::sink()).map_err(Error::system("reading the input"))?;
    Ok(())
}

enum Bytes {
    Image(Image),
    MadeUp(Vec<u8>),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Bytes::Image(image) => image.bytes(),
            Bytes::MadeUp(bytes) => bytes,
        }
    }
}

/// Memory all of whose pages are touched and none of which is zero.
pub fn made_up(bytes: usize) -> Vec<u8> {
    (1..=250).cycle().take(bytes).collect()
}

fn serve_connection(mut stream: TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut role = [0];
    stream.read_exact(&mut role)?;
    if role[0] == Role::OnDemand.byte() {
        serve_on_demand(stream, bytes)
    } else {
        set_socket_send_buffer_size(&stream, BULK_BUFFER_BYTES)?;
        bytes.chunks(WRITE_BYTES).try_for_each(|piece| stream.write_all(piece))
    }
}

fn serve_on_demand(mut stream: TcpStream, bytes: &[u8]) -> io::Result<()> {
    loop {
        let mut index = [0; 8];
        stream.read_exact(&mut index)?;
        let page = usize::try_from(u64::from_le_bytes(index))
            .ok()
            .and_then(|index| bytes.chunks_exact(PageSize::BASE.bytes()).nth(index))
            .ok_or(io::ErrorKind::InvalidInput)?;
        stream.write_all(page)?;
    }
}

/// Buffer of the bulk stream's sockets: as Godwit has it, so that what is between them is the
/// protocol. The kernel takes less if its limit is lower.
const BULK_BUFFER_BYTES: usize = 1 << 20;

/// Bytes of one write of the bulk stream.
const WRITE_BYTES: usize = 256 << 10;
