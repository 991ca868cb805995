//! The one binary: `ruvector dev | coordinator | node | consumer | ctl | demo`.
//!
//! In reading order: the command line ([`cli`]), where settings come from
//! ([`settings`]), how a process runs and ends ([`process`], [`observe`],
//! [`logging`], [`failure`]), all processes in one ([`dev`]), the operator's view ([`ctl`]),
//! and the guided tour ([`demo`]).

mod cli;
mod ctl;
mod demo;
mod dev;
mod failure;
mod logging;
mod observe;
mod process;
mod settings;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let result = cli.run();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
