//! Between a data set and the header of its packs; the format is `thanos_formats`'.

use thanos_configs::DataSet;
use thanos_formats::PackHeader;

/// That of a pack which is not written yet: it has no fingerprint and no place for its tensors.
pub(super) fn of(data: &DataSet, split: &str, images: usize) -> PackHeader {
    PackHeader {
        name: data.name.clone(),
        split: split.into(),
        fine_names: data.labels.fine_names.clone(),
        coarse_names: data.labels.coarse_names.clone(),
        mean: data.mean.clone(),
        std: data.std.clone(),
        shape: [images, data.side, data.side, data.channels],
        ..PackHeader::default()
    }
}

/// Whether a pack of this data set and split has this header.
pub(super) fn describes(header: &PackHeader, data: &DataSet, split: &str) -> bool {
    (header.name.as_str(), header.split.as_str()) == (data.name.as_str(), split)
        && header.shape[1..] == [data.side, data.side, data.channels]
        && header.fine_names == data.labels.fine_names
        && header.coarse_names == data.labels.coarse_names
        && (data.mean.is_empty() || (&header.mean, &header.std) == (&data.mean, &data.std))
}
