# lora.c: 'make help' lists the targets.
# Objects live in build/<flavour>/, so release and sanitizer builds never mix; build/lora is the release program.

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
SHELL := /bin/sh

-include config.mak

.SECONDARY:

FLAVOUR ?= release
OUT := build/$(FLAVOUR)

CFLAGS_release := -O3 -g
CFLAGS_asan := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
LDFLAGS_asan := -fsanitize=address,undefined
CFLAGS_fuzz := -O1 -g -fsanitize=address,undefined,fuzzer-no-link
LDFLAGS_fuzz := -fsanitize=address,undefined

WARN := -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
# -fno-math-errno changes no result: it lets the compiler use the processor's own square root.
ALL_CFLAGS = -std=c11 -fno-math-errno -D_GNU_SOURCE -I. $(if $(filter yes,$(HAVE_WEBP)),-DHAVE_WEBP) $(WARN) -fopenmp -fvisibility=hidden $(CFLAGS_$(FLAVOUR)) $(DEP_CFLAGS) -MMD -MP
ALL_LDFLAGS = $(LDFLAGS_$(FLAVOUR)) -rdynamic

LIB_SRC := $(sort $(wildcard ref/*/*.c formats/*.c formats/*/*.c offload/*.c))
CMD_SRC := $(sort $(wildcard cmd/*.c cmd/*/*.c))
TEST_SRC := $(sort $(wildcard tests/test_*.c))
TEST_HELP_SRC := $(sort $(wildcard tests/lib/*.c))
FUZZ_SRC := $(sort $(wildcard tests/fuzz/fuzz_*.c))

LIB := $(OUT)/liblora.a
BIN := $(if $(filter release,$(FLAVOUR)),build/lora,$(OUT)/lora)
LIB_OBJ := $(LIB_SRC:%.c=$(OUT)/%.o) $(OUT)/formats/clip_merges.o
CMD_OBJ := $(CMD_SRC:%.c=$(OUT)/%.o)
TEST_HELP_OBJ := $(TEST_HELP_SRC:%.c=$(OUT)/%.o)
CMD_LIB_OBJ := $(filter-out $(OUT)/cmd/main.o,$(CMD_OBJ))
TEST_BIN := $(TEST_SRC:tests/%.c=$(OUT)/tests/%)
FUZZ_BIN := $(FUZZ_SRC:tests/%.c=$(OUT)/tests/%)
# Plug-ins: shared libraries that a device name opens (offload/offload.h). They carry what they use of ref/base themselves.
PLUGIN_DIR := $(dir $(BIN))plugins
PLUGIN_BASE := $(patsubst %,$(OUT)/pic/ref/base/%.o,dtype err half mem slab tensor)
ifeq ($(HAVE_DNNL),yes)
PLUGINS += $(PLUGIN_DIR)/lora-dnnl.so
endif
PLUGIN_DNNL_OBJ := $(patsubst %.c,$(OUT)/pic/%.o,$(sort $(wildcard offload/dnnl/*.c)))
# The CUDA plug-in. CUDA_ARCH: compute capabilities that it has machine code for; newer GPUs use the PTX of the last one, older
# ones cannot run it. A package wants all: make CUDA_ARCH='75 80 86 89 90'
CUDA_ARCH ?= 80 90
ifeq ($(HAVE_CUDA),yes)
PLUGINS += $(PLUGIN_DIR)/lora-cuda.so
endif
PLUGIN_CUDA_SRC := $(filter-out offload/cuda/$(if $(filter yes,$(HAVE_CUDNN)),no_,)cudnn.c,$(sort $(wildcard offload/cuda/*.c)))
PLUGIN_CUDA_OBJ := $(PLUGIN_CUDA_SRC:%.c=$(OUT)/pic/%.o) $(patsubst %.cu,build/cuda/%.o,$(sort $(wildcard offload/cuda/*.cu)))
NVCC_FLAGS = -std=c++17 -O3 -I. -Xcompiler -fPIC,-fvisibility=hidden -Wno-deprecated-gpu-targets \
  $(foreach a,$(CUDA_ARCH),-gencode=arch=compute_$a,code=sm_$a) \
  -gencode=arch=compute_$(lastword $(CUDA_ARCH)),code=compute_$(lastword $(CUDA_ARCH))
BENCH_BIN := $(patsubst %.c,$(OUT)/%,$(sort $(wildcard tests/bench/bench_*.c)))

## all: build/lora and liblora.a
all: $(BIN) $(LIB) $(PLUGINS)

# A changed configure is run again the way it was run before.
config.mak: configure
	@run=$$(sed -n '1s/^# written by: //p' $@ 2>/dev/null); echo "$${run:-./configure}"; sh -c "$${run:-./configure}"

ifneq ($(HAVE_TESTS),yes)
TESTS_CONFIG := tests-config
endif

.PHONY: all help check demo bench asan golden fuzz install uninstall clean distclean tests tests-config check-only

# The way it was run before, and with what tests need.
tests-config:
	@run=$$(sed -n '1s/^# written by: //p' config.mak 2>/dev/null); echo "$${run:-./configure} --with-tests"; \
	  sh -c "$${run:-./configure} --with-tests"

$(OUT)/%.o: %.c Makefile config.mak
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -c -o $@ $<

# Register tiles: only with -O3 are they in registers (ref/op/kernel.h).
$(OUT)/ref/op/kernel.o $(OUT)/ref/op/kernel_bf16.o: ALL_CFLAGS += -O3
$(OUT)/ref/op/attention.o: ALL_CFLAGS += -O3 -ffp-contract=fast

$(OUT)/pic/%.o: %.c Makefile config.mak
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -fPIC -c -o $@ $<

$(PLUGIN_DIR)/lora-dnnl.so: $(PLUGIN_DNNL_OBJ) $(PLUGIN_BASE)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_$(FLAVOUR)) -shared -fopenmp -o $@ $^ -ldnnl $(LDFLAGS)

# CUDA kernels compiled for the CPU: tests/cuda/emulate stands in for the GPU's own headers (offload/cuda/device.cuh).
EMULATED := $(OUT)/tests/cuda/emulated
EMULATED_SRC := $(sort $(filter-out offload/cuda/plugin%,$(wildcard offload/cuda/*.cu)) $(wildcard tests/cuda/*.cpp tests/cuda/emulate/*.cpp))
EMULATED_OBJ := $(EMULATED_SRC:%=$(OUT)/emulated/%.o)
CXX_CACHE := $(filter ccache,$(firstword $(CC)))
# Kernels' threads are stacks of their own, changed by longjmp: what a fortified libc takes for a fault (Ubuntu's compiler asks for it).
EMULATED_FLAGS = -std=c++17 $(CFLAGS_$(FLAVOUR)) -O1 -U_FORTIFY_SOURCE -Wall -Wextra -Wno-unknown-pragmas -Itests/cuda/emulate -I. -MMD -MP

$(OUT)/emulated/%.o: % Makefile config.mak
	@mkdir -p $(@D)
	$(CXX_CACHE) $(CXX) $(EMULATED_FLAGS) -x c++ -c -o $@ $<

$(EMULATED): $(EMULATED_OBJ) $(LIB)
	@mkdir -p $(@D)
	$(CXX) $(LDFLAGS_$(FLAVOUR)) -fopenmp -o $@ $^ $(DEP_LIBS)

$(OUT)/pic/offload/cuda/%.o: ALL_CFLAGS += $(CUDA_CFLAGS)
# Machine code for a GPU is the same in every flavour.
build/cuda/%.o: %.cu Makefile config.mak
	@mkdir -p $(@D)
	$(CXX_CACHE) $(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<

$(PLUGIN_DIR)/lora-cuda.so: $(PLUGIN_CUDA_OBJ) $(PLUGIN_BASE)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_$(FLAVOUR)) -shared -fopenmp -o $@ $^ $(CUDA_LIBS) $(LDFLAGS)

# A data file becomes a C array: portable, no linker tricks.
$(OUT)/%.c: %.bin
	@mkdir -p $(@D)
	{ echo 'extern const unsigned char $(*F)[];'; echo 'extern const unsigned long $(*F)_size;'; \
	  echo 'const unsigned char $(*F)[] = {'; od -An -v -tu1 $< | sed 's/[0-9][0-9]*/&,/g'; echo '};'; \
	  echo 'const unsigned long $(*F)_size = sizeof $(*F);'; } > $@

$(OUT)/formats/clip_merges.o: $(OUT)/formats/clip_merges.c
	$(CC) $(ALL_CFLAGS) -c -o $@ $<

$(LIB): $(LIB_OBJ)
	rm -f $@ && ar rcs $@ $^

$(BIN): $(CMD_OBJ) $(LIB)
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) -o $@ $(CMD_OBJ) $(LIB) $(DEP_LIBS)

$(OUT)/tests/%.o: ALL_CFLAGS += $(TEST_CFLAGS)
$(OUT)/tests/libtest.a: $(TEST_HELP_OBJ) $(CMD_LIB_OBJ)
	rm -f $@ && ar rcs $@ $^

$(OUT)/tests/%: $(OUT)/tests/%.o $(OUT)/tests/libtest.a $(LIB)
	$(CC) $(ALL_LDFLAGS) -o $@ $^ $(DEP_LIBS) $(TEST_LIBS)

$(OUT)/tests/fuzz/fuzz_%: $(OUT)/tests/fuzz/fuzz_%.o $(OUT)/tests/fuzz/replay.o $(LIB)
	$(CC) $(ALL_LDFLAGS) -o $@ $^ $(DEP_LIBS)

$(OUT)/tests/bench/bench_%: $(OUT)/tests/bench/bench_%.o $(CMD_LIB_OBJ) $(LIB)
	$(CC) $(ALL_LDFLAGS) -o $@ $^ $(DEP_LIBS)

## bench: how fast it is: whole parts, files, operations, SVDs; MODEL=FILE, PEER_PYTHON=python3 for others beside it
bench: $(BENCH_BIN) $(BIN)
	@MODEL="$(MODEL)" PEER_PYTHON="$(PEER_PYTHON)" ROWS="$(ROWS)" tests/bench/table.sh $(OUT)/tests/bench/bench_unet
	@BASE="$(BASE)" TUNED="$(TUNED)" OTHER="$(OTHER)" PEER_PYTHON="$(PEER_PYTHON)" SD_SCRIPTS="$(SD_SCRIPTS)" ROWS="$(ROWS)" \
	  tests/bench/table_files.sh $(BIN)
	@for b in $(filter-out %/bench_unet,$(BENCH_BIN)); do $$b || exit 1; done

ifeq ($(HAVE_TESTS),yes)
tests: $(TEST_BIN) $(FUZZ_BIN) $(BIN) $(PLUGINS) $(OUT)/tests/demo/demo $(if $(filter yes,$(HAVE_CXX)),$(EMULATED))
else
tests: tests-config
	$(MAKE) tests
endif

## check: every test: units, command lines, corpus, faults (installs what tests need)
check: $(TESTS_CONFIG)
	$(MAKE) check-only

check-only: tests
	tests/run $(OUT) $(BIN)

## asan: the same tests with AddressSanitizer and UBSan
asan: $(TESTS_CONFIG)
	$(MAKE) FLAVOUR=asan check-only

# make fuzz TARGET=safetensors SECONDS=300: a coverage-guided run; new findings land in build/fuzz/found/
PYTHON ?= python3
TARGET ?= $(patsubst tests/fuzz/fuzz_%.c,%,$(FUZZ_SRC))
SECONDS ?= 60
## fuzz: run each fuzz target with libFuzzer (clang) for SECONDS=60; TARGET=NAME for one
fuzz:
	$(MAKE) FLAVOUR=fuzz CC=clang build/fuzz/liblora.a
	@set -e; mkdir -p build/fuzz/found; for t in $(TARGET); do \
	  clang -std=c11 -D_GNU_SOURCE -I. -g -O1 -fsanitize=address,undefined,fuzzer $(DEP_CFLAGS) \
	    -o build/fuzz/fuzz_$$t tests/fuzz/fuzz_$$t.c build/fuzz/liblora.a $(DEP_LIBS); \
	  mkdir -p build/fuzz/corpus/$$t; \
	  build/fuzz/fuzz_$$t -max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=2048 -artifact_prefix=build/fuzz/found/$$t- \
	    build/fuzz/corpus/$$t tests/fuzz/corpus/$$t; done

## golden: make golden data again with PYTHON=python3 (packages: golden/PROVENANCE.md) and compare; ONLY=ops for a part
golden:
	golden/make_all.sh $(PYTHON) build/golden $(ONLY)

## demo: train a LoRA on ten pictures, draw with it, merge it, take it out again; a page of pictures (some minutes)
demo: $(BIN) $(OUT)/tests/demo/demo
	@sh tests/demo/demo.sh $(abspath $(BIN)) $(abspath $(OUT)/tests/demo/demo) $(abspath build/demo)

DEMO_OBJ := $(patsubst %.c,$(OUT)/%.o,$(sort $(wildcard tests/demo/*.c)))

$(OUT)/tests/demo/demo: $(DEMO_OBJ) $(CMD_LIB_OBJ) $(LIB)
	$(CC) $(ALL_LDFLAGS) -o $@ $^ $(DEP_LIBS)

## help: this list
help:
	@sed -n 's/^## //p' Makefile

# Pages, completions and links come from the program's own tables, so a new command needs nothing here.
TO := $(DESTDIR)$(PREFIX)
# What 'lora verify' reads; the small model draws pictures, too.
GOLDEN := ops.safetensors models.safetensors train.safetensors tokenizer.json rng.safetensors rng_cuda.safetensors schedule.safetensors \
  samplers.safetensors samplers_v030.safetensors small_model/small.safetensors small_model/reference.safetensors
## install: program, man pages, completion, links of the old names, to $(DESTDIR)$(PREFIX)
install: $(BIN)
	install -d $(TO)/bin $(TO)/share/man/man1 $(TO)/share/bash-completion/completions $(TO)/share/zsh/site-functions \
	  $(TO)/share/fish/vendor_completions.d $(TO)/share/doc/lora
	install -m 755 $(BIN) $(TO)/bin/lora
	install -m 644 README.md LICENSE $(TO)/share/doc/lora
	install -d $(TO)/share/lora/golden/small_model
	for f in $(GOLDEN); do install -m 644 golden/$$f $(TO)/share/lora/golden/$$f || exit 1; done
	for p in $(PLUGINS); do install -d $(TO)/lib/lora && install -m 755 $$p $(TO)/lib/lora || exit 1; done
	$(BIN) man > $(TO)/share/man/man1/lora.1
	$(BIN) help --as names | while read -r name others; do \
	  $(BIN) man $$name > $(TO)/share/man/man1/lora-$$name.1 || exit 1; \
	  for other in $$others; do ln -sf lora $(TO)/bin/$$other || exit 1; done; done
	$(BIN) completion bash > $(TO)/share/bash-completion/completions/lora
	$(BIN) completion zsh > $(TO)/share/zsh/site-functions/_lora
	$(BIN) completion fish > $(TO)/share/fish/vendor_completions.d/lora.fish

## uninstall: what install has put there
uninstall: $(BIN)
	$(BIN) help --as names | while read -r name others; do \
	  rm -f $(TO)/share/man/man1/lora-$$name.1; for other in $$others; do rm -f $(TO)/bin/$$other; done; done
	rm -f $(TO)/bin/lora $(TO)/share/man/man1/lora.1 $(TO)/share/bash-completion/completions/lora \
	  $(TO)/share/zsh/site-functions/_lora $(TO)/share/fish/vendor_completions.d/lora.fish
	rm -rf $(TO)/share/doc/lora $(TO)/share/lora $(TO)/lib/lora

## clean: remove build/
clean:
	rm -rf build

## distclean: clean, and forget the configuration
distclean: clean
	rm -f config.mak config.log

-include $(LIB_OBJ:.o=.d) $(PLUGIN_DNNL_OBJ:.o=.d) $(PLUGIN_CUDA_OBJ:.o=.d) $(PLUGIN_BASE:.o=.d) $(EMULATED_OBJ:.o=.d) $(CMD_OBJ:.o=.d) $(TEST_HELP_OBJ:.o=.d) $(TEST_SRC:%.c=$(OUT)/%.d) $(DEMO_OBJ:.o=.d) $(BENCH_BIN:=.d)
