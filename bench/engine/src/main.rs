//! Figures of the index engine alone, on a data set's folder (see [`data`]).
//!
//! `engine-bench serve FOLDER [OPTION=VALUE…]`: builds and searches as commands on
//! stdin say, one JSON line for each; `bench/peers/side_by_side.py` drives it beside
//! other engines, which answer the same commands.
//! `engine-bench inserts FOLDER [OPTION=VALUE…]`: what searches notice of inserts and
//! deletions in the same process.
//! `engine-bench growth FOLDER [OPTION=VALUE…]`: build time, distances a search and
//! memory as rows grow tenfold, and what follows for ten million.
//! `engine-bench memory FOLDER [OPTION=VALUE…]`: memory of a row by part.
//! `engine-bench kernels FOLDER [OPTION=VALUE…]`: what part of a search its kernels are.
//!
//! The options stand where each command is described: [`serve`], [`inserts`], [`growth`],
//! [`memory`], [`kernels`].

#![allow(clippy::print_stdout)]

mod clock;
mod data;
mod growth;
mod index;
mod inserts;
mod kernels;
mod memory;
mod npy;
mod options;
mod search;
mod serve;
mod statistics;

use anyhow::{Result, bail};
use options::Options;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, folder, options @ ..] = arguments.as_slice() else {
        bail!("usage: engine-bench serve|inserts|growth|memory|kernels FOLDER [OPTION=VALUE…]");
    };
    let mut options = Options::parse(options.iter().map(String::as_str))?;
    match command.as_str() {
        "serve" => serve::run(folder.as_ref(), &mut options),
        "inserts" => inserts::run(folder.as_ref(), &mut options),
        "growth" => growth::run(folder.as_ref(), &mut options),
        "memory" => memory::run(folder.as_ref(), &mut options),
        "kernels" => kernels::run(folder.as_ref(), &mut options),
        _ => bail!("no command '{command}'; there are serve, inserts, growth, memory, kernels"),
    }
}
