//! Nuage: the cloud for a school's web sites. One registry of zone files drives an authoritative DNS
//! server and an HTTPS proxy.

mod admin;
mod args;
mod commands;
mod listeners;
mod output;
mod supervise;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    args::{Args, Command},
    output::Output,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    let output = Output::new(args.format);
    let done = match args.command {
        Command::Serve => supervise::serve(&args.config),
        Command::Check => commands::check::check(&args.config, &output),
        Command::Site(command) => commands::site::run(*command, &args.config, &output),
        Command::Zone(command) => commands::zone::run(&command, &args.config, &output),
        Command::Ca => commands::ca::print(&args.config, &output),
        Command::Completions { shell } => commands::completions::print(shell, &output),
    };
    output.finish(done)
}
