//! A connection in replication mode: start-up, authentication, simple queries,
//! and the switch to CopyBoth. tokio-postgres has no replication mode.
//!
//! Caveats: plaintext or a Unix socket only; one query at a time.

use crate::source::postgres::Postgres;
use anyhow::{Context, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// Postgres's own limit on a message (MaxAllocSize), and some.
const FRAME_BYTES_MAX: usize = (1 << 30) + 1024;
/// Authentication and query results are small.
const SMALL_FRAME_BYTES_MAX: usize = 1 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

type Read = Box<dyn AsyncRead + Send + Unpin>;
type Write = Box<dyn AsyncWrite + Send + Unpin>;

/// A message of the server: its tag and what follows the length.
pub struct Frame {
    pub tag: u8,
    pub body: Bytes,
}

pub struct FrameReader {
    read: Read,
    buffer: BytesMut,
}

impl FrameReader {
    #[cfg(test)]
    pub fn of(read: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self {
            read: Box::new(read),
            buffer: BytesMut::new(),
        }
    }

    pub async fn next(&mut self) -> anyhow::Result<Frame> {
        self.next_within(FRAME_BYTES_MAX).await
    }

    /// The buffer grows as bytes arrive, never to a length only announced.
    async fn next_within(&mut self, bytes_max: usize) -> anyhow::Result<Frame> {
        loop {
            if let Some((header, _)) = self.buffer.split_first_chunk::<5>() {
                let [tag, len @ ..] = *header;
                let len = u32::from_be_bytes(len) as usize;
                ensure!(
                    (4..=bytes_max).contains(&len),
                    "the server announced a message {:?} of {len} bytes",
                    char::from(tag)
                );
                if self.buffer.len() > len {
                    let mut body = self.buffer.split_to(len + 1).freeze();
                    body.advance(5);
                    return Ok(Frame { tag, body });
                }
            }
            let read = self
                .read
                .read_buf(&mut self.buffer)
                .await
                .context("reading from Postgres")?;
            ensure!(read > 0, "Postgres closed the connection");
        }
    }
}

pub struct FrameWriter {
    write: Write,
}

impl FrameWriter {
    #[cfg(test)]
    pub fn of(write: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self {
            write: Box::new(write),
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.write
            .write_all(bytes)
            .await
            .context("writing to Postgres")?;
        self.write.flush().await.context("writing to Postgres")
    }
}

pub struct Connection {
    reader: FrameReader,
    writer: FrameWriter,
    /// Of the server's process, as it said; 0: it did not.
    server_pid: i32,
}

/// Rows of a simple query, as text.
pub type TextRows = Vec<Vec<Option<String>>>;

impl Connection {
    /// `options` are settings of the session, `-c name=value …`.
    pub async fn connect(server: &Postgres, options: &str) -> anyhow::Result<Self> {
        let config = server.config()?;
        tokio::time::timeout(CONNECT_TIMEOUT, Self::connect_untimed(&config, options))
            .await
            .context("Postgres did not complete the connection in time")?
    }

    async fn connect_untimed(config: &Config, options: &str) -> anyhow::Result<Self> {
        ensure!(
            matches!(config.get_ssl_mode(), SslMode::Disable | SslMode::Prefer),
            "sslmode=require is not supported yet for the replication connection"
        );
        let (read, write) = open_socket(config).await?;
        let mut connection = Self {
            reader: FrameReader {
                read,
                buffer: BytesMut::with_capacity(64 << 10),
            },
            writer: FrameWriter { write },
            server_pid: 0,
        };
        connection.start_up(config, options).await?;
        Ok(connection)
    }

    async fn start_up(&mut self, config: &Config, options: &str) -> anyhow::Result<()> {
        let user = config
            .get_user()
            .context("the connection string names no user")?;
        let database = config.get_dbname().unwrap_or(user);
        let parameters = [
            ("user", user),
            ("database", database),
            ("replication", "database"),
            ("application_name", "ruvector-consumer"),
            ("client_encoding", "UTF8"),
            ("options", options),
        ];
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out)?;
        self.writer.send(&out).await?;
        let mut scram: Option<ScramSha256> = None;
        loop {
            let mut frame = self.reader.next_within(SMALL_FRAME_BYTES_MAX).await?;
            match frame.tag {
                b'R' => {
                    self.authenticate(config, user, &mut frame.body, &mut scram)
                        .await?
                }
                b'E' => return Err(server_error(&frame.body)),
                b'Z' => return Ok(()),
                b'K' => self.server_pid = frame.body.try_get_i32().unwrap_or(0),
                b'S' | b'N' | b'v' => {}
                tag => bail!("unexpected message {:?} during start-up", char::from(tag)),
            }
        }
    }

    async fn authenticate(
        &mut self,
        config: &Config,
        user: &str,
        body: &mut Bytes,
        scram: &mut Option<ScramSha256>,
    ) -> anyhow::Result<()> {
        ensure!(body.len() >= 4, "authentication request cut off");
        let password = || {
            config
                .get_password()
                .context("the server asks for a password, the DSN has none")
        };
        let mut out = BytesMut::new();
        match body.get_u32() {
            0 => return Ok(()),
            3 => frontend::password_message(password()?, &mut out)?,
            5 => {
                let salt = body.first_chunk::<4>().context("MD5 salt cut off")?;
                let hash = md5_hash(user.as_bytes(), password()?, *salt);
                frontend::password_message(hash.as_bytes(), &mut out)?;
            }
            10 => {
                let offered = body
                    .split(|b| *b == 0)
                    .any(|m| m == SCRAM_SHA_256.as_bytes());
                ensure!(offered, "the server offers no {SCRAM_SHA_256}");
                let exchange = ScramSha256::new(password()?, ChannelBinding::unsupported());
                frontend::sasl_initial_response(SCRAM_SHA_256, exchange.message(), &mut out)?;
                *scram = Some(exchange);
            }
            11 => {
                let exchange = scram.as_mut().context("SASL continues before it began")?;
                exchange.update(body)?;
                frontend::sasl_response(exchange.message(), &mut out)?;
            }
            12 => {
                let exchange = scram.as_mut().context("SASL ends before it began")?;
                exchange
                    .finish(body)
                    .context("the server does not know the password")?;
                return Ok(());
            }
            kind => bail!("authentication method {kind} is not supported"),
        }
        self.writer.send(&out).await
    }

    pub fn server_pid(&self) -> i32 {
        self.server_pid
    }

    /// One simple query; its rows as text.
    pub async fn query(&mut self, sql: &str) -> anyhow::Result<TextRows> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.writer.send(&out).await?;
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            let frame = self.reader.next_within(SMALL_FRAME_BYTES_MAX).await?;
            match frame.tag {
                b'D' => rows.push(read_text_row(frame.body)?),
                b'E' => error = Some(server_error(&frame.body)),
                b'Z' => break,
                b'T' | b'C' | b'S' | b'N' | b'I' => {}
                tag => bail!(
                    "unexpected message {:?} in answer to {sql:?}",
                    char::from(tag)
                ),
            }
        }
        match error {
            Some(error) => Err(error).with_context(|| format!("running {sql:?}")),
            None => Ok(rows),
        }
    }

    /// Switches to CopyBoth. From here on both halves live their own lives.
    pub async fn copy_both(mut self, sql: &str) -> anyhow::Result<(FrameReader, FrameWriter)> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.writer.send(&out).await?;
        loop {
            let frame = self.reader.next_within(SMALL_FRAME_BYTES_MAX).await?;
            match frame.tag {
                b'W' => return Ok((self.reader, self.writer)),
                b'E' => return Err(server_error(&frame.body)).context("starting replication"),
                b'N' | b'S' => {}
                tag => bail!(
                    "unexpected message {:?} instead of CopyBoth",
                    char::from(tag)
                ),
            }
        }
    }
}

async fn open_socket(config: &Config) -> anyhow::Result<(Read, Write)> {
    let mut last = anyhow::anyhow!("the connection string names no host");
    for (index, host) in config.get_hosts().iter().enumerate() {
        let ports = config.get_ports();
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(name) => match TcpStream::connect((name.as_str(), port)).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    let (read, write) = stream.into_split();
                    return Ok((Box::new(read), Box::new(write)));
                }
                Err(e) => {
                    last = anyhow::Error::new(e).context(format!("connecting to {name}:{port}"))
                }
            },
            Host::Unix(folder) => {
                let path = folder.join(format!(".s.PGSQL.{port}"));
                match UnixStream::connect(&path).await {
                    Ok(stream) => {
                        let (read, write) = stream.into_split();
                        return Ok((Box::new(read), Box::new(write)));
                    }
                    Err(e) => {
                        last = anyhow::Error::new(e)
                            .context(format!("connecting to {}", path.display()));
                    }
                }
            }
        }
    }
    Err(last)
}

fn read_text_row(mut body: Bytes) -> anyhow::Result<Vec<Option<String>>> {
    ensure!(body.len() >= 2, "row cut off");
    let count = body.get_u16();
    let mut row = Vec::new();
    for _ in 0..count {
        ensure!(body.len() >= 4, "row cut off");
        let len = body.get_i32();
        row.push(match usize::try_from(len) {
            Err(_) => None,
            Ok(len) => {
                ensure!(len <= body.len(), "column of a row cut off");
                Some(String::from_utf8(body.split_to(len).to_vec())?)
            }
        });
    }
    Ok(row)
}

/// An ErrorResponse as one line, with its SQLSTATE.
pub fn server_error(body: &[u8]) -> anyhow::Error {
    let mut severity = String::new();
    let mut code = String::new();
    let mut message = String::new();
    for field in body.split(|b| *b == 0) {
        let Some((kind, text)) = field.split_first() else {
            continue;
        };
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'S' => severity = text,
            b'C' => code = text,
            b'M' => message = text,
            _ => {}
        }
    }
    anyhow::anyhow!("{severity} {code}: {message}")
}
