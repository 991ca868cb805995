//! What a process counts, as monitoring reads it.

use crate::cluster::Cluster;
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

impl Cluster {
    /// The sum of a metric over its labels; 0 while the process has none of it.
    pub fn metric(&self, process: &str, name: &str) -> Result<f64> {
        let text = self.metrics(process)?;
        let mut sum = 0.0;
        for line in text.lines() {
            let Some(rest) = line.strip_prefix(name) else {
                continue;
            };
            if !rest.starts_with(['{', ' ']) {
                continue;
            }
            let value = rest.rsplit(' ').next().unwrap_or_default();
            sum += value.parse::<f64>().with_context(|| line.to_owned())?;
        }
        Ok(sum)
    }

    /// The value of one line, named with its labels.
    pub fn metric_line(&self, process: &str, line: &str) -> Result<f64> {
        let text = self.metrics(process)?;
        let value = text.lines().find_map(|l| l.strip_prefix(line));
        let value = value.with_context(|| format!("{process} has no {line}"))?;
        value.trim().parse().with_context(|| value.to_owned())
    }

    fn metrics(&self, process: &str) -> Result<String> {
        let address = self.setting(process, "metrics_listen")?;
        let mut stream = TcpStream::connect(&address).with_context(|| address.clone())?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        ensure!(
            text.starts_with("HTTP/1.1 200"),
            "{address} answers {:?}",
            text.lines().next()
        );
        Ok(text)
    }
}
