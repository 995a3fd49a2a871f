//! `--device`: on what workers train, as users of both programs type it.

use std::fmt;
use std::str::FromStr;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// One GPU per worker if there are any, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// One GPU per worker, by the worker's place on its machine.
    Cuda,
    /// All workers of a machine share its GPU of this number.
    CudaIndex(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let index = |text: &str| text.strip_prefix("cuda:")?.parse().ok();
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            _ => index(text)
                .map(Self::CudaIndex)
                .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".into()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda => f.write_str("cuda"),
            Self::CudaIndex(index) => write!(f, "cuda:{index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_read_as_it_is_written() {
        for text in ["auto", "cpu", "cuda", "cuda:0", "cuda:12"] {
            assert_eq!(
                text.parse::<DeviceChoice>().map(|choice| choice.to_string()),
                Ok(text.into())
            );
        }
        for text in ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:a", "cpu:0"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
