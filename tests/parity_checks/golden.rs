//! A safetensors file of golden vectors: tensors by name, and the metadata of its header as JSON.

use crate::test_device::test_device;
use anyhow::{Context, Result};
use safetensors::SafeTensors;
use serde::de::DeserializeOwned;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use tch::Tensor;
use thanos_worker::tensors::{StateDict, from_safetensors};

pub(crate) struct Golden {
    metadata: HashMap<String, String>,
    tensors: StateDict,
}

impl Golden {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path)?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        Ok(Self {
            metadata: header.metadata().clone().unwrap_or_default(),
            tensors: from_safetensors(&bytes)?,
        })
    }

    /// An entry of the header's metadata.
    pub(crate) fn metadata<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        let text = self
            .metadata
            .get(key)
            .with_context(|| format!("the header has no metadata `{key}`"))?;
        serde_json::from_str(text).with_context(|| format!("metadata `{key}`: {text}"))
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        self.tensors
            .get(name)
            .map(Tensor::shallow_clone)
            .with_context(|| format!("there is no tensor `{name}`"))
    }

    /// A tensor that is computed with, on the device under test; what is expected stays on the CPU.
    pub(crate) fn input(&self, name: &str) -> Result<Tensor> {
        Ok(self.tensor(name)?.to_device(test_device()))
    }

    /// Tensors in a folder, by the rest of their names.
    pub(crate) fn folder(&self, name: &str) -> StateDict {
        let prefix = format!("{name}/");
        let inside = |(name, tensor): (&String, &Tensor)| {
            name.strip_prefix(&prefix).map(|name| (name.to_string(), tensor.shallow_clone()))
        };
        self.tensors.iter().filter_map(inside).collect()
    }

    pub(crate) fn folders(&self) -> BTreeSet<String> {
        self.names()
            .filter_map(|name| name.split_once('/'))
            .map(|(folder, _)| folder.to_string())
            .collect()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}
