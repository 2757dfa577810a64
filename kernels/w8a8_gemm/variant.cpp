// One variant: the products of its instruction set in the frame that all share.
#include "common/int8_rows.h"
#include "common/variants.h"

#if defined(CODESIGN_VARIANT_avx512) || defined(CODESIGN_VARIANT_avx512vnni)
#include "avx512.h"
#elif defined(CODESIGN_VARIANT_avx2)
#include "avx2.h"
#elif defined(CODESIGN_VARIANT_dotprod) || defined(CODESIGN_VARIANT_i8mm)
#include "neon.h"
#else
#include "scalar.h"
#endif

extern const codesign_int8_variant CODESIGN_VARIANT_OF(w8a8) = {
    Product::TILE_ROWS,
    quantize<Product::TILE_ROWS>,
    multiply<Product>,
};
