//! Nuage: the cloud for a school's web sites. One registry of zone files drives an authoritative DNS
//! server, an HTTPS proxy and a container for each site.

mod admin;
mod allocator;
mod args;
mod commands;
mod control;
mod doh;
mod link;
mod listeners;
mod output;
mod supervise;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    args::{Args, Command},
    output::Output,
};

fn main() -> ExitCode {
    let args = Args::parse();
    let output = Output::new(args.format);
    let done = match args.command {
        Command::Serve { role } => supervise::serve(&args.config, role),
        Command::Capacity => commands::capacity::show(&args.config, &output),
        Command::Uninstall => commands::uninstall::run(&args.config, &output),
        Command::Check => commands::check::check(&args.config, &output),
        Command::Site(command) => commands::site::run(*command, &args.config, &output),
        Command::Zone(command) => commands::zone::run(&command, &args.config, &output),
        Command::Doctor { name, resolver } => {
            commands::doctor::run(&name, resolver, &args.config, &output)
        }
        Command::Ca => commands::ca::print(&args.config, &output),
        Command::Completions { shell } => commands::completions::print(shell, &output),
    };
    output.finish(done)
}
