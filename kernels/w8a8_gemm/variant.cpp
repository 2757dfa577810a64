// One variant: the products of its instruction set in the frame that all share.
#include "variants.h"

#include "common/int8_rows.h"

#if defined(CODESIGN_VARIANT_avx512) || defined(CODESIGN_VARIANT_avx512vnni)
#include "avx512.h"
#elif defined(CODESIGN_VARIANT_avx2)
#include "avx2.h"
#elif defined(CODESIGN_VARIANT_dotprod) || defined(CODESIGN_VARIANT_i8mm)
#include "neon.h"
#else
#include "scalar.h"
#endif

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

extern const codesign_int8_variant JOIN(codesign_w8a8_, CODESIGN_VARIANT) = {
    Product::TILE_ROWS,
    quantize<Product::TILE_ROWS>,
    multiply<Product>,
};
