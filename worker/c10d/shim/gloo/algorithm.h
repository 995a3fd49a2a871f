// Opaque declarations of gloo: no wheel ships its headers, and c10d names its types only by
// pointers.
#pragma once
