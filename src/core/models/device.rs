//! The device that a model runs on.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

use crate::error::{Error, Result};

/// The device that a model runs on: `cpu`, `cuda`, `cuda:N`, or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if available, otherwise the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU by index.
    Cuda(usize),
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such GPU, or if the program was built without CUDA.
    pub fn open(self) -> Result<Device> {
        if !cfg!(feature = "cuda") && matches!(self, Self::Cuda(_)) {
            return Err(Error::Config(
                "this program was built without CUDA; rebuild it with `cargo build --features cuda`"
                    .into(),
            ));
        }
        let device = match self {
            Self::Auto => Device::cuda_if_available(0),
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(index) => Device::new_cuda(index),
        };
        device.map_err(|error| Error::Config(format!("no CUDA device: {error}")))
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| {
                    Error::Config(format!("expected cpu, cuda, cuda:N or auto, got {text:?}"))
                }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_by_name_and_index() {
        let check = |expected, text: &str| assert_eq!(expected, text.parse().ok());
        check(Some(DeviceChoice::Cuda(0)), "cuda");
        check(Some(DeviceChoice::Cuda(3)), "cuda:3");
        check(None, "cuda:");
        check(None, "gpu");
    }
}
