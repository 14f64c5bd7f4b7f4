//! DINOv2 with registers (Darcet et al., arXiv:2309.16588): additional tokens that belong to no patch.

use serde_json::json;

use super::{Architecture, dinov2};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_types: &["dinov2_with_registers"],
    class_prefix: "Dinov2WithRegisters",
    tensor_prefix: "dinov2_with_registers.",
    antialiased_positions: true,
    read: |fields, config| {
        config.registers = fields.count("num_register_tokens", 4)?;
        Ok(())
    },
    write: |config, root| {
        (dinov2::ARCHITECTURE.write)(config, root);
        root["num_register_tokens"] = json!(config.registers);
    },
    ..dinov2::ARCHITECTURE
};
