//! Where in a forward pass a parameter is used, by its name: a backward pass makes the gradient of
//! the deepest ones first. It orders; no result depends on it.

/// A parameter's part of the network, and its place there.
pub(crate) fn depth(name: &str) -> [i64; 2] {
    let parts: Vec<&str> = name.split('.').collect();
    let number = |part: &str| part.trim_start_matches("layer").parse().unwrap_or(0);
    match parts[..] {
        // Blocks of a ViT, layers of a ResNet.
        ["enc", "f", block, ..] => [1, number(block)],
        [layer, ..] if layer.starts_with("layer") => [1, number(layer)],
        ["cls", ..] => [2, 0],
        // A decoder's layers are numbered from its output.
        ["decoder", "linear", ..] => [3, i64::MIN],
        ["decoder", layer, ..] => [3, -number(layer)],
        // Embedding of patches and positions; a ResNet's stem.
        _ => [0, 0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_in_the_order_of_a_forward_pass() {
        for names in [
            &["enc.pe", "enc.f.2.mha.f.f.qkv.weight", "enc.f.10.ffn.f.norm.bias", "cls.weight"][..],
            &["conv1.weight", "layer1.0.bn1.weight", "layer4.1.conv2.weight", "cls.bias"],
            &["cls.weight", "decoder.linear.weight", "decoder.layer4.0.bn1.bias"],
            &["decoder.layer4.0.bn1.bias", "decoder.layer1.0.bn1.bias", "decoder.conv1.bias"],
        ] {
            assert!(names.is_sorted_by(|one, next| depth(one) < depth(next)), "{names:?}");
        }
    }
}
