//! The label tables of the larger data sets, as published; which data set has which is for
//! `dataset.rs` to say.

/// The 100 classes of CIFAR-100, in the order of their labels (cs.toronto.edu/~kriz/cifar.html).
pub(super) const CIFAR100_FINE: &str = "\
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus \
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch \
    crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo \
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse \
    mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy \
    porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper \
    snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television \
    tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm";

/// Its 20 superclasses.
pub(super) const CIFAR100_COARSE: &str = "\
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices \
    household_furniture insects large_carnivores large_man-made_outdoor_things \
    large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals \
    non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2";

/// The superclass of each class of CIFAR-100.
#[rustfmt::skip]
pub(super) const CIFAR100_COARSE_OF: [i64; 100] = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3,
    15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0,
    17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19,
    2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
];

/// The coarse label of each class of TinyImageNet, by the place of the class's wnid in sorted
/// order: the published head has 67 classes, of which 52 occur.
#[rustfmt::skip]
pub(super) const TINYIMAGENET_COARSE_OF: [i64; 200] = [
    14, 31, 16, 16, 8, 34, 35, 0, 0, 0, 4, 3, 22, 14, 7, 23, 23, 23, 9, 9, 3, 3, 3, 21, 11, 11, 11,
    11, 11, 11, 6, 6, 6, 39, 39, 2, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 12, 30, 19, 37, 37, 37, 37, 37,
    28, 28, 28, 37, 2, 61, 46, 53, 46, 41, 53, 45, 45, 47, 43, 53, 65, 45, 56, 52, 46, 62, 58, 41,
    49, 62, 62, 64, 45, 62, 66, 46, 61, 50, 62, 47, 49, 45, 50, 45, 65, 65, 58, 53, 53, 55, 62, 58,
    58, 64, 48, 46, 41, 65, 44, 61, 50, 65, 46, 49, 65, 44, 65, 62, 58, 46, 46, 65, 62, 41, 45, 55,
    55, 50, 50, 51, 47, 62, 60, 65, 46, 52, 62, 66, 60, 61, 53, 50, 53, 43, 46, 65, 60, 61, 60, 46,
    54, 50, 58, 65, 58, 50, 46, 58, 46, 62, 48, 63, 45, 62, 65, 58, 65, 61, 41, 46, 58, 43, 47, 58,
    48, 48, 59, 48, 52, 52, 52, 52, 52, 38, 38, 18, 17, 17, 17, 17, 52, 52, 52, 52, 58, 58, 7, 58,
    58, 27,
];

/// Labels of TinyImageNet's published coarse head.
pub(super) const TINYIMAGENET_COARSE: usize = 67;

/// Training images that the five classes of a superclass keep in CIFAR-100-U, in ascending order of
/// their labels.
pub(super) const CIFAR100_U_KEPT: [usize; 5] = [500, 250, 100, 50, 50];
