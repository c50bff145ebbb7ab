// Drives a configuration list through libcni, as container runtimes do.
//
//	libcni add|check|del NETWORK CONTAINER NETNS IFNAME
//
// Directories come from the environment: CONF_DIR (configuration lists), CNI_PATH (plugins), CACHE_DIR
// (results, which CHECK and DEL get back). CAPABILITIES is the runtime's JSON, CNI_ARGS its K=V;K=V.
// A plugin's refusal is printed as one JSON object on stdout, with exit code 1.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		var refusal *types.Error
		if errors.As(err, &refusal) {
			object := map[string]any{"code": refusal.Code, "msg": refusal.Msg, "details": refusal.Details}
			json.NewEncoder(os.Stdout).Encode(object)
		} else {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
}

func run(words []string) error {
	if len(words) != 5 {
		return errors.New("usage: libcni add|check|del NETWORK CONTAINER NETNS IFNAME")
	}
	list, err := libcni.LoadConfList(os.Getenv("CONF_DIR"), words[1])
	if err != nil {
		return err
	}
	attachment := &libcni.RuntimeConf{ContainerID: words[2], NetNS: words[3], IfName: words[4]}
	if text := os.Getenv("CAPABILITIES"); text != "" {
		if err := json.Unmarshal([]byte(text), &attachment.CapabilityArgs); err != nil {
			return err
		}
	}
	for _, pair := range strings.Split(os.Getenv("CNI_ARGS"), ";") {
		if key, value, found := strings.Cut(pair, "="); found {
			attachment.Args = append(attachment.Args, [2]string{key, value})
		}
	}
	plugins := filepath.SplitList(os.Getenv("CNI_PATH"))
	client := libcni.NewCNIConfigWithCacheDir(plugins, os.Getenv("CACHE_DIR"), nil)
	switch words[0] {
	case "add":
		result, err := client.AddNetworkList(context.Background(), list, attachment)
		if err != nil {
			return err
		}
		return result.Print()
	case "check":
		return client.CheckNetworkList(context.Background(), list, attachment)
	case "del":
		return client.DelNetworkList(context.Background(), list, attachment)
	}
	return fmt.Errorf("no operation %q", words[0])
}
