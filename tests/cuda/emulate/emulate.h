/* The order in which emulated threads run: 0 rising, 1 falling. */
#ifndef TESTS_CUDA_EMULATE_EMULATE_H
#define TESTS_CUDA_EMULATE_EMULATE_H

extern int emulate_falling;

#endif
