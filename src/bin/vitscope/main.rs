//! The program `vitscope`: parses its arguments, runs one subcommand, and reports the outcome by its exit code.

#[macro_use]
mod print;

mod args;
mod bench;
mod devices;
mod doctor;
mod environment;
mod eval;
mod exit;
mod file;
mod interrupt;
mod keyboard;
mod live;
mod methods;
mod models;
mod outputs;
mod progress;
mod run;
mod setup;
mod side;
mod still;
mod teach;
mod toml_file;
mod train;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
use exit::Exit;

fn main() -> ExitCode {
    let command = match Args::try_parse() {
        Ok(args) => args.command,
        Err(usage) => return Exit::from_usage(&usage).into(),
    };
    let command = match command {
        Command::Run(args) => match run::read(&args) {
            Ok(args) => args.command,
            Err(error) => return Exit::from_error(&error).into(),
        },
        command => command,
    };
    exit::init_log(command.is_chatty());
    vitscope::media::log_to_tracing();
    start(&command)
        .unwrap_or_else(|error| Exit::from_error(&error))
        .into()
}

fn start(command: &Command) -> anyhow::Result<Exit> {
    environment::set(command.threads())?;
    match command {
        Command::File(args) => file::run(args),
        Command::Live(args) => live::run(args),
        Command::Devices => devices::run(),
        Command::Doctor => doctor::run(),
        Command::Still(args) => still::run(args),
        Command::Teach(args) => teach::run(args),
        Command::Train(args) => train::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Methods(args) => methods::run(args),
        Command::Models(args) => models::run(args),
        // A file cannot name another file.
        Command::Run(args) => start(&run::read(args)?.command),
    }
}
